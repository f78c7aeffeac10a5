//go:build kube

package kube

import (
	"net"
	"strings"
	"testing"
	"time"
)

// A rolling update of the agents, and agents that are killed, under requests by new connections and by old ones:
// none fails, whether to the pod's own address or through its Service.
func TestAgentsAreReplacedAndKilledWithoutAFailedRequest(t *testing.T) {
	ctx, l := up(t)
	pods := deploy(ctx, t, l, "web", false, 8080)
	service := strings.TrimSpace(kubectl(ctx, t, l, "get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"))
	var loads []*load
	for i, from := range pods {
		to := pods[(i+1)%len(pods)]
		ns := netnsOf(ctx, t, l, from)
		loads = append(loads,
			startLoad(t, ns, "http://"+net.JoinHostPort(to.ips[0], "8080")+"/hostname", 20*time.Millisecond, false),
			startLoad(t, ns, "http://"+net.JoinHostPort(to.ips[0], "8080")+"/hostname", 10*time.Millisecond, true),
			startLoad(t, ns, awaitService(t, ns, "http://"+net.JoinHostPort(service, "80")+"/hostname"), 50*time.Millisecond, false))
	}
	time.Sleep(time.Second)
	kubectl(ctx, t, l, "rollout", "restart", "-n", "heddle-system", "daemonset/heddle")
	kubectl(ctx, t, l, "rollout", "status", "-n", "heddle-system", "daemonset/heddle", "--timeout=3m")
	for range 2 { // more often, and the kubelet makes the next wait for minutes
		for _, node := range l.Nodes() {
			killAgent(ctx, t, l, node)
			// The kubelet has seen that there was no network, or will not any more: a Service has no pods when
			// both nodes are without.
			time.Sleep(5 * time.Second)
			kubectl(ctx, t, l, "wait", "--for=condition=Ready", "node", "--all", "--timeout=2m")
		}
	}
	for _, load := range loads {
		load.end(t)
	}
}
