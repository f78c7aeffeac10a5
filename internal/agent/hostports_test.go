package agent

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
)

func TestHostPortIsRefusedToASecondWorkload(t *testing.T) {
	port := model.HostPort{Protocol: "tcp", HostPort: 80, ContainerPort: 8080}
	with := func(id, name string, ports ...model.HostPort) model.Workload {
		return model.Workload{ContainerID: id, IfName: "eth0", Namespace: "default", Name: name, HostPorts: ports}
	}
	w := with("a", "web", port)
	for _, c := range []struct {
		what  string
		other model.Workload
		want  string
	}{
		{"itself", with("a", "web", port), ""},
		{"the pod's earlier sandbox", with("b", "web", port), ""},
		{"another pod", with("b", "db", port), "workload default/web: host port 80/tcp: workload default/db has 80/tcp"},
		{"a container without a name", model.Workload{ContainerID: "b", IfName: "eth0", HostPorts: []model.HostPort{port}}, "workload b has 80/tcp"},
		{"another pod with another port", with("b", "db", model.HostPort{Protocol: "udp", HostPort: 80, ContainerPort: 8080}), ""},
	} {
		err := portsTaken(&w, []model.Workload{with("z", "other"), c.other})
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.what, err, c.want)
		}
	}
	nameless := model.Workload{ContainerID: "c", IfName: "eth0", HostPorts: []model.HostPort{port}}
	if err := portsTaken(&nameless, []model.Workload{{ContainerID: "d", IfName: "eth0", HostPorts: nameless.HostPorts}}); err == nil {
		t.Error("two containers without names have one port")
	}
}

func TestHostIPOfAFamilyThatTheWorkloadLacksIsRefused(t *testing.T) {
	w := model.Workload{ContainerID: "a", IfName: "eth0", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2")}}
	for ip, ok := range map[string]bool{"": true, "0.0.0.0": true, "192.0.2.1": true, "::": false, "2001:db8::1": false} {
		p := model.HostPort{Protocol: "tcp", HostPort: 80, ContainerPort: 80}
		if ip != "" {
			p.HostIP = netip.MustParseAddr(ip)
		}
		w.HostPorts = []model.HostPort{p}
		if err := portsReachable(&w); (err == nil) != ok {
			t.Errorf("%q: %v", ip, err)
		}
	}
}
