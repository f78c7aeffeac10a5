//go:build kube

package kube

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/test/kube/lab"
)

// What every network for Kubernetes has to do, in each form that the lab has: two of them with Heddle, and
// the reference plugins, which say that it is not the lab that fails.
func TestPodsNodesServicesAndNamesReachEachOther(t *testing.T) {
	for name, change := range map[string]func(*lab.Spec){
		"reference":         func(s *lab.Spec) { s.Network = lab.Reference },
		"heddle":            func(*lab.Spec) {},
		"heddle-dual-stack": func(s *lab.Spec) { s.DualStack, s.Backend, s.Proxy = true, "host-gw", "iptables" },
	} {
		t.Run(name, func(t *testing.T) {
			ctx, l := up(t, change)
			pods := deploy(ctx, t, l, "web", false, 8080)
			hosts := deploy(ctx, t, l, "hostweb", true, 8090)

			for _, from := range slices.Concat(pods, hosts) {
				for _, to := range pods {
					for _, ip := range to.ips {
						reaches(ctx, t, l, from, net.JoinHostPort(ip, "8080"), to.name)
					}
				}
				for _, to := range hosts {
					for _, ip := range to.ips {
						reaches(ctx, t, l, from, net.JoinHostPort(ip, "8090"), to.node)
					}
				}
			}
			for _, from := range pods {
				// By name and by address; what answers is one of the pods.
				for _, ip := range strings.Fields(kubectl(ctx, t, l, "get", "service", "web", "-o", "jsonpath={.spec.clusterIPs[*]}")) {
					reaches(ctx, t, l, from, net.JoinHostPort(ip, "80"), "web-")
				}
				reaches(ctx, t, l, from, "web.default.svc.cluster.local", "web-")
				reaches(ctx, t, l, from, "hostweb", "n")
				apiServerAnswers(ctx, t, l, from)
			}
		})
	}
}

// reaches wants the answer to "who are you?" to begin as told.
func reaches(ctx context.Context, t *testing.T, l *lab.Lab, from pod, to, want string) {
	t.Helper()
	eventually(t, time.Minute, fmt.Sprintf("%s on %s to %s", from.name, from.node, to), func() error {
		out, err := l.Kubectl(ctx, "exec", from.name, "--", "curl", "-sS", "-m", "5", "http://"+to+"/hostname")
		if err == nil && !strings.HasPrefix(out, want) {
			err = fmt.Errorf("it says %q, want %q", out, want)
		}
		return err
	})
}

// apiServerAnswers asks the API server through its Service, as every operator in a pod does: any answer
// will do, even that nobody may ask without a token.
func apiServerAnswers(ctx context.Context, t *testing.T, l *lab.Lab, from pod) {
	t.Helper()
	eventually(t, time.Minute, from.name+" to the API server", func() error {
		_, err := l.Kubectl(ctx, "exec", from.name, "--", "curl", "-sS", "-k", "-m", "5", "-o", "/dev/null", "https://kubernetes.default.svc/version")
		return err
	})
}

// Two labs stand side by side, and nothing of a lab is left when it is down.
func TestLabsDoNotMeetAndLeaveNothing(t *testing.T) {
	bare := func(s *lab.Spec) { s.Network, s.Nodes = lab.None, 1 }
	ctx, one := up(t, bare)
	_, two := up(t, bare)
	for _, l := range []*lab.Lab{one, two} {
		if nodes := strings.Fields(kubectl(ctx, t, l, "get", "nodes", "-o", "name")); !slices.Equal(nodes, []string{"node/n1"}) {
			t.Errorf("lab %s has nodes %q, want its own alone", l.Spec.Name, nodes)
		}
	}
	if err := two.Down(); err != nil {
		t.Fatal(err)
	}
	if left := traces(t, two.Spec.Name); len(left) > 0 {
		t.Errorf("left of the lab: %q", left)
	}
	kubectl(ctx, t, one, "get", "nodes")
}
