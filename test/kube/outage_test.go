//go:build kube

package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/heddle-net/heddle/test/kube/lab"
)

// closed lets only pods with the label friend=yes in.
const closed = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed}
spec:
  podSelector: {matchLabels: {app: shut}}
  ingress: [{from: [{podSelector: {matchLabels: {friend: "yes"}}}]}]
`

// outage is how long the API server stays away: HEDDLE_KUBE_OUTAGE, a minute if that is not set.
func outage(t *testing.T) time.Duration {
	text := os.Getenv("HEDDLE_KUBE_OUTAGE")
	if text == "" {
		return time.Minute
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// Without an API server traffic goes on, policies hold, agents can be restarted and pods get new sandboxes from
// the node's own block; when it is back, nothing is left over.
func TestWithoutAnAPIServerPodsPoliciesAndRestartsGoOn(t *testing.T) {
	ctx, l := up(t)
	pods := deploy(ctx, t, l, "web", false, 8080)
	shut := deploy(ctx, t, l, "shut", false, 8080)
	if err := l.Apply(ctx, closed); err != nil {
		t.Fatal(err)
	}
	url := func(p pod) string { return "http://" + net.JoinHostPort(p.ips[0], "8080") + "/hostname" }
	ns := netnsOf(ctx, t, l, pods[0])
	denied := func() error {
		client := inside(ns, false)
		client.Timeout = 2 * time.Second
		for _, p := range shut {
			if err := get(ctx, client, url(p)); err == nil {
				return fmt.Errorf("%s on %s answers a pod that its policy denies", p.name, p.node)
			}
		}
		return nil
	}
	eventually(t, time.Minute, "the policy holds", denied)
	traffic := startLoad(t, ns, url(pods[1]), 20*time.Millisecond, false)

	again, err := l.Stop("kube-apiserver")
	if err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	for _, node := range l.Nodes() {
		killAgent(ctx, t, l, node)
		if err := denied(); err != nil {
			t.Error(err)
		}
	}
	reborn := restartSandbox(ctx, t, l, shut[1])
	shut[1].ips = []string{reborn}
	if err := denied(); err != nil {
		t.Error("after its sandbox was made anew: ", err)
	}
	if rest := outage(t) - time.Since(begin); rest > 0 {
		time.Sleep(rest)
	}
	if err := denied(); err != nil {
		t.Error(err)
	}
	traffic.end(t)

	if err := again(); err != nil {
		t.Fatal(err)
	}
	if err := l.WaitForAPI(ctx); err != nil {
		t.Fatal(err)
	}
	for _, node := range l.Nodes() {
		eventually(t, 3*time.Minute, "node "+node+" holds an address for each of its pods and no other", func() error { return addressesAreThoseOfPods(ctx, l, node) })
	}
	eventually(t, time.Minute, "the policy holds for the new address", denied)
}

// restartSandbox kills a pod's sandbox and waits for the address of the next one.
func restartSandbox(ctx context.Context, t *testing.T, l *lab.Lab, p pod) (address string) {
	t.Helper()
	before, err := workloads(ctx, l, p.node)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := l.Exec(ctx, p.node, "sh", "-c", `
		for p in $(pidof pause); do
			nsenter -t $p -n ip -o address 2>/dev/null | grep -q " $1/" && kill -9 $p && exit 0
		done
		exit 1`, "sh", p.ips[0]); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Minute, "pod "+p.name+" has a new sandbox", func() error {
		now, err := workloads(ctx, l, p.node)
		if err != nil {
			return err
		}
		for _, a := range now["default/"+p.name] {
			if !slices.Contains(before["default/"+p.name], a) {
				address = a
				return nil
			}
		}
		return errors.New("no new address")
	})
	return address
}

// workloads are the addresses that a node's agent has given, by pod.
func workloads(ctx context.Context, l *lab.Lab, node string) (map[string][]string, error) {
	text, err := agentAnswers(ctx, l, node, "/status")
	if err != nil {
		return nil, err
	}
	var s struct {
		Workloads []struct {
			Namespace, Name string
			Addresses       []string
		}
	}
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return nil, err
	}
	out := map[string][]string{}
	for _, w := range s.Workloads {
		out[w.Namespace+"/"+w.Name] = append(out[w.Namespace+"/"+w.Name], w.Addresses...)
	}
	return out, nil
}

// addressesAreThoseOfPods compares what the agent of a node has given with what the API server says of its pods.
func addressesAreThoseOfPods(ctx context.Context, l *lab.Lab, node string) error {
	given, err := workloads(ctx, l, node)
	if err != nil {
		return err
	}
	out, err := l.Kubectl(ctx, "get", "pods", "-A", "--field-selector=spec.nodeName="+node, "-o", "json")
	if err != nil {
		return err
	}
	var pods struct {
		Items []struct {
			Metadata struct{ Namespace, Name string }
			Spec     struct{ HostNetwork bool }
			Status   struct{ PodIPs []struct{ IP string } }
		}
	}
	if err := json.Unmarshal([]byte(out), &pods); err != nil {
		return err
	}
	said := map[string][]string{}
	for _, p := range pods.Items {
		if p.Spec.HostNetwork {
			continue
		}
		var addrs []string
		for _, ip := range p.Status.PodIPs {
			addrs = append(addrs, ip.IP)
		}
		said[p.Metadata.Namespace+"/"+p.Metadata.Name] = addrs
	}
	for pod, addrs := range given {
		if !slices.Equal(addrs, said[pod]) {
			return fmt.Errorf("the agent gave %s %v, the API server says %v", pod, addrs, said[pod])
		}
	}
	if len(given) != len(said) {
		return fmt.Errorf("the agent knows %d pods, the API server %d: %v, %v", len(given), len(said), given, said)
	}
	return nil
}
