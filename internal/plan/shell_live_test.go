package plan_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
)

// bare is a pair of hosts with nothing but a wire between them, each in a namespace of its own, and a
// namespace for one workload on each.
type bare struct {
	t            *testing.T
	hosts, netns [2]string
}

var pairs atomic.Int32

func newBare(t *testing.T) *bare {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root for network namespaces")
	}
	for _, tool := range []string{"ip", "bridge", "nft", "sysctl", "ping"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Fatalf("`make setup` installs %s: %v", tool, err)
		}
	}
	b := &bare{t: t}
	id := fmt.Sprintf("hdsh%d-%d", os.Getpid(), pairs.Add(1))
	for i := range 2 {
		b.hosts[i], b.netns[i] = fmt.Sprintf("%s-n%d", id, i), fmt.Sprintf("%s-p%d", id, i)
		for _, ns := range []string{b.hosts[i], b.netns[i]} {
			b.run("ip", "netns", "add", ns)
			t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
		}
		b.run("ip", "-n", b.hosts[i], "link", "set", "dev", "lo", "up")
	}
	b.run("ip", "-n", b.hosts[0], "link", "add", "name", "eth0", "type", "veth", "peer", "name", "eth0", "netns", b.hosts[1])
	for i, h := range b.hosts {
		b.run("ip", "-n", h, "link", "set", "dev", "eth0", "up")
		b.run("ip", "-n", h, "address", "add", fmt.Sprintf("192.168.0.%d/24", i+1), "dev", "eth0")
		b.run("ip", "-n", h, "address", "add", fmt.Sprintf("2001:db8::%d/64", i+1), "dev", "eth0", "nodad")
	}
	return b
}

func (b *bare) run(args ...string) string {
	b.t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		b.t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// paste gives a text to a shell on a host, as somebody at a terminal would.
func (b *bare) paste(host, text string) {
	b.t.Helper()
	cmd := exec.Command("ip", "netns", "exec", host, "sh", "-eu")
	cmd.Stdin = strings.NewReader(text)
	if out, err := cmd.CombinedOutput(); err != nil {
		b.t.Fatalf("pasted on %s: %v\n%s\n--- pasted:\n%s", host, err, out, text)
	}
}

// ping retries, as the first packets may go while neighbours are being resolved.
func (b *bare) ping(ns string, to netip.Addr) {
	b.t.Helper()
	var out []byte
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		var err error
		if out, err = exec.Command("ip", "netns", "exec", ns, "ping", "-n", "-c", "1", "-W", "1", to.String()).CombinedOutput(); err == nil {
			return
		}
	}
	b.t.Fatalf("no answer from %s:\n%s", to, out)
}

// sent counts the packets that left by a link; 0 when there is no such link.
func (b *bare) sent(host, link string) int {
	out, err := exec.Command("ip", "-n", host, "-j", "-s", "link", "show", "dev", link).Output()
	if err != nil {
		return 0
	}
	var s []struct {
		Stats struct {
			TX struct {
				Packets int `json:"packets"`
			} `json:"tx"`
		} `json:"stats64"`
	}
	if err := json.Unmarshal(out, &s); err != nil || len(s) != 1 {
		b.t.Fatalf("%v: %s", err, out)
	}
	return s[0].Stats.TX.Packets
}

// cluster is what the two hosts make together: dual-stack pods, and one workload's addresses on each.
func (b *bare) cluster(p model.Path, e model.Encap, outer6 bool) (cl model.Cluster, pods [2][]netip.Addr) {
	for _, n := range []struct {
		name, cidr string
		size       int
	}{{"flannel", "10.244.0.0/16", 24}, {"flannel6", "fd00:244::/48", 64}} {
		cl.Pools = append(cl.Pools, model.Pool{
			Name: n.name, CIDR: netip.MustParsePrefix(n.cidr), BlockSize: n.size, Path: p, Encap: e,
			VXLAN: model.VXLAN{VNI: 1, Port: 8472}, Masquerade: true,
		})
	}
	for i, h := range b.hosts {
		n := model.Node{
			Name: h, Address4: netip.MustParseAddr(fmt.Sprintf("192.168.0.%d", i+1)),
			VTEP4: plan.VTEPMAC(h, 1, model.IPv4), Accepts: []model.Path{model.PathDirect, model.PathIPIP, model.PathVXLAN},
		}
		n.Uplinks = []model.Uplink{{Link: "eth0", Prefix: netip.PrefixFrom(n.Address4, 24), MTU: 1500}}
		if outer6 {
			n.Address6, n.VTEP6 = netip.MustParseAddr(fmt.Sprintf("2001:db8::%d", i+1)), plan.VTEPMAC(h, 1, model.IPv6)
			n.Uplinks = append(n.Uplinks, model.Uplink{Link: "eth0", Prefix: netip.PrefixFrom(n.Address6, 64), MTU: 1500})
		}
		cl.Nodes = append(cl.Nodes, n)
		for j, f := range []string{"10.244.%d.0/24", "fd00:244:0:%d::/64"} {
			blk := netip.MustParsePrefix(fmt.Sprintf(f, i+1))
			cl.Blocks = append(cl.Blocks, model.Block{CIDR: blk, Pool: cl.Pools[j].Name, Node: h})
			pods[i] = append(pods[i], blk.Addr().Next().Next())
		}
	}
	cl.Sort()
	return cl, pods
}

// build is the plan of host i.
func (b *bare) build(i int, cl model.Cluster, style model.Attachment, pod []netip.Addr) (plan.Input, plan.Plan) {
	b.t.Helper()
	n := cl.Node(b.hosts[i])
	in := plan.Input{
		Self: n.Name, Cluster: cl, Host: model.Host{Uplinks: n.Uplinks}, Attachment: style,
		Workloads: []model.Workload{{
			ContainerID: n.Name, IfName: "eth0", Namespace: "it's", Name: "a pod", Addresses: pod,
			HostPorts: []model.HostPort{
				{Protocol: "tcp", HostPort: 8080, ContainerPort: 80},
				{Protocol: "udp", HostIP: n.Address4, HostPort: 53, ContainerPort: 5353},
			},
			Bandwidth: &model.Bandwidth{IngressRate: 80_000_000, EgressRate: 40_000_000, EgressBurst: 4_000_000},
		}},
	}
	p, err := plan.Build(in)
	if err != nil || len(p.Problems) > 0 {
		b.t.Fatalf("%v, problems %v", err, p.Problems)
	}
	return in, p
}

// TestPastedPlanCarriesPackets proves the printed commands: two bare hosts, the plans of both and of their
// workloads pasted into shells, and pings between the workloads; then the table as nft reads it back.
func TestPastedPlanCarriesPackets(t *testing.T) {
	for _, c := range []struct {
		name   string
		path   model.Path
		encap  model.Encap
		style  model.Attachment
		outer6 bool     // hosts have IPv6 addresses
		sends  []string // devices that carried packets
		idle   []string
	}{
		{"vxlan", model.PathVXLAN, model.EncapAlways, model.AttachBridge, true, []string{"flannel.1", "flannel-v6.1"}, nil},
		{"vxlan with IPv6 inside IPv4", model.PathVXLAN, model.EncapAlways, model.AttachBridge, false, []string{"flannel.1"}, []string{"flannel-v6.1"}},
		{"vxlan, direct inside the segment, routed", model.PathVXLAN, model.EncapCrossSubnet, model.AttachRouted, true, nil, nil},
		{"vxlan, routed", model.PathVXLAN, model.EncapAlways, model.AttachRouted, true, []string{"flannel.1", "flannel-v6.1"}, nil},
		{"host-gw", model.PathDirect, model.EncapNever, model.AttachBridge, true, nil, []string{"flannel.1", "flannel-v6.1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newBare(t)
			cl, pods := b.cluster(c.path, c.encap, c.outer6)
			for i := range b.hosts {
				in, p := b.build(i, cl, c.style, pods[i])
				b.paste(b.hosts[i], plan.Shell(p)+plan.ShellPod(plan.PodOf(in, in.Workloads[0], p.MTU), b.netns[i]))
				b.checkTable(b.hosts[i], p.Filter)
				b.checkQueues(b.hosts[i], in.Workloads[0], b.netns[i])
			}
			for _, to := range pods[1] {
				b.ping(b.netns[0], to)
				b.ping(b.hosts[0], to)
			}
			for _, link := range c.sends {
				if b.sent(b.hosts[0], link) == 0 {
					t.Errorf("nothing went by %s", link)
				}
			}
			for _, link := range c.idle {
				if n := b.sent(b.hosts[0], link); n != 0 {
					t.Errorf("%d packets went by %s", n, link)
				}
			}
		})
	}
}

// TestChangeOfPathIsOneReplacePerRoute: with the devices and their entries in place, the kernel takes each
// route of the other mode as a replacement of the present one, there and back, in both families.
func TestChangeOfPathIsOneReplacePerRoute(t *testing.T) {
	b := newBare(t)
	direct, pods := b.cluster(model.PathDirect, model.EncapNever, true)
	tunnel, _ := b.cluster(model.PathVXLAN, model.EncapAlways, true)
	var before, after [2]plan.Plan
	for i, h := range b.hosts {
		var in plan.Input
		in, before[i] = b.build(i, direct, model.AttachBridge, pods[i])
		b.paste(h, plan.Shell(before[i])+plan.ShellPod(plan.PodOf(in, in.Workloads[0], before[i].MTU), b.netns[i]))
		_, after[i] = b.build(i, tunnel, model.AttachBridge, pods[i])
		ready := ""
		for _, line := range strings.SplitAfter(plan.Shell(after[i]), "\n") {
			if strings.Contains(line, "flannel") && !strings.Contains(line, " route ") {
				ready += line
			}
		}
		b.paste(h, ready)
	}
	for _, plans := range [][2]plan.Plan{after, before} {
		for i, h := range b.hosts {
			routes := ""
			for _, line := range strings.SplitAfter(plan.Shell(plans[i]), "\n") {
				if strings.Contains(line, " route add ") {
					routes += strings.Replace(line, " route add ", " route replace ", 1)
				}
			}
			if n := strings.Count(routes, "\n"); n != 2 {
				t.Fatalf("%d routes, want 2:\n%s", n, routes)
			}
			b.paste(h, routes)
		}
		was := b.sent(b.hosts[0], "flannel.1") + b.sent(b.hosts[0], "flannel-v6.1")
		for _, to := range pods[1] {
			b.ping(b.netns[0], to)
		}
		tunnelled := b.sent(b.hosts[0], "flannel.1")+b.sent(b.hosts[0], "flannel-v6.1") > was
		if want := len(plans[0].FDB) > 0; tunnelled != want {
			t.Errorf("tunnelled %v, want %v", tunnelled, want)
		}
		for _, r := range plans[0].Routes {
			if got := b.run("ip", "-n", b.hosts[0], "route", "show", r.Dst.String()); strings.Count(got, "\n") > 1 {
				t.Errorf("more than one route to %s:\n%s", r.Dst, got)
			}
		}
	}
}

// checkTable compares what nft reads back with the skeleton and the elements, line by line.
func (b *bare) checkTable(host string, f plan.Filter) {
	b.t.Helper()
	listed := b.run("ip", "netns", "exec", host, "nft", "list", "table", "inet", plan.Table)
	for _, line := range strings.Split(plan.Skeleton, "\n") {
		if !strings.Contains(listed, strings.TrimSpace(line)) {
			b.t.Errorf("nft lost %q:\n%s", line, listed)
		}
	}
	for _, s := range f.Sets() {
		kind := "set"
		if strings.HasPrefix(s.Name, "hostports") {
			kind = "map"
		}
		out := b.run("ip", "netns", "exec", host, "nft", "list", kind, "inet", plan.Table, s.Name)
		for _, p := range s.HostPorts {
			if to := fmt.Sprintf("%s . %d", p.To.Addr(), p.To.Port()); !strings.Contains(out, to) || !strings.Contains(out, fmt.Sprint(p.Port)) {
				b.t.Errorf("%s %s lacks %d to %s:\n%s", kind, s.Name, p.Port, to, out)
			}
		}
		for _, p := range s.Protocols {
			if name := map[uint8]string{4: "ipencap", 41: "ipv6"}[p]; !strings.Contains(out, name) && !strings.Contains(out, fmt.Sprint(p)) {
				b.t.Errorf("set %s lacks %d:\n%s", s.Name, p, out)
			}
		}
		for _, e := range s.Elements {
			text := e.String()
			if e.IsSingleIP() {
				text = e.Addr().String()
			}
			if !strings.Contains(out, text) {
				b.t.Errorf("set %s lacks %s:\n%s", s.Name, e, out)
			}
		}
	}
}

// checkQueues reads back to what the workload's traffic is held.
func (b *bare) checkQueues(host string, w model.Workload, netns string) {
	b.t.Helper()
	link := model.HostLinkName(w.ContainerID, w.IfName)
	if out := b.run("tc", "-n", host, "qdisc", "show", "dev", link); !strings.Contains(out, "rate 80Mbit burst 1000000b") {
		b.t.Errorf("%s has %s", link, out)
	}
	if out := b.run("tc", "-n", netns, "qdisc", "show", "dev", w.IfName); !strings.Contains(out, "rate 40Mbit burst 500000b") {
		b.t.Errorf("%s has %s", w.IfName, out)
	}
}

// TestSkeletonIsAsNFTPrintsIt: the text is its own golden, so that a driver can be compared with it.
func TestSkeletonIsAsNFTPrintsIt(t *testing.T) {
	b := newBare(t)
	cmd := exec.Command("ip", "netns", "exec", b.hosts[0], "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(plan.Filter{}.NFT() + plan.Filter{}.NFT())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if got := b.run("ip", "netns", "exec", b.hosts[0], "nft", "list", "table", "inet", plan.Table); !bytes.Equal([]byte(got), []byte(plan.Skeleton)) {
		t.Errorf("nft reads back:\n%s", got)
	}
}
