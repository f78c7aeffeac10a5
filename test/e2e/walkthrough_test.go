package e2e

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
)

// TestNetworkPolicyStepByStep is the tutorial on network policies: namespaces dev and prod with a pod1 in
// each, HTTP on port 80, on every attachment and path, in both families.
func TestNetworkPolicyStepByStep(t *testing.T) {
	for _, tt := range []struct{ name, topology, netConf, attachment string }{
		{"bridge, direct", "flat", hostGW, "bridge"},
		{"bridge, vxlan", "two-segments", vxlan, "bridge"},
		{"routed, direct", "flat", hostGW, "routed"},
		{"routed, vxlan", "two-segments", vxlan, "routed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, l := up(t, tt.topology, tt.netConf, func(s *lab.Spec) { s.Attachment, s.Pods = tt.attachment, 0 })
			w := &walkthrough{t: t, ctx: ctx, l: l, ip: map[string]lab.Pod{}}
			w.walk()
		})
	}
}

// walkthrough is one user at a terminal.
type walkthrough struct {
	t   *testing.T
	ctx context.Context
	l   *lab.Lab
	ip  map[string]lab.Pod
}

func (w *walkthrough) walk() {
	for pod, node := range map[string]string{"dev/pod1": "n1", "prod/pod1": "n2", "default/near": "n1", "default/far": "n3"} {
		p, err := w.l.AddPod(w.ctx, node, pod)
		if err != nil {
			w.t.Fatal(err)
		}
		w.ip[pod] = p
	}
	for _, pod := range []string{"dev/pod1", "prod/pod1"} {
		w.serve(pod, 80)
		w.serve(pod, 8080)
	}
	clients := []string{"default/near", "default/far", "prod/pod1"}

	w.step("namespaces alone isolate nothing")
	w.apply("{apiVersion: v1, kind: Namespace, metadata: {name: dev}}\n---\n{apiVersion: v1, kind: Namespace, metadata: {name: prod}}")
	w.all(clients, "dev/pod1", 80, true)
	w.curl("dev/pod1", "prod/pod1", 80, true)

	w.step("1. deny-all-ingress in dev")
	w.apply(networkPolicy("dev", "deny-all-ingress", "podSelector: {}, policyTypes: [Ingress]"))
	w.all(clients, "dev/pod1", 80, false)
	w.curl("default/near", "prod/pod1", 80, true)
	w.curl("dev/pod1", "prod/pod1", 80, true) // replies to what it asks come in
	w.why("default/near", "dev/pod1", 80, "denied at the end of tier default: NetworkPolicy dev/deny-all-ingress selects it and no rule of it matches")
	w.flow("dev/pod1", "NetworkPolicy dev/deny-all-ingress")

	w.step("2. the same with ingress: [{}]")
	w.apply(networkPolicy("dev", "deny-all-ingress", "podSelector: {}, policyTypes: [Ingress], ingress: [{}]"))
	w.all(clients, "dev/pod1", 80, true)

	w.step("3. an address block with an exception, on one port")
	w.command("n1", "", "heddle", "label", "pod", "pod1", "app=myapp", "-n", "dev")
	w.command("n1", "", "heddle", "delete", "networkpolicy", "deny-all-ingress", "-n", "dev")
	near := w.ip["default/near"]
	w.apply(networkPolicy("dev", "allow-myapp-ingress", fmt.Sprintf(`podSelector: {matchLabels: {app: myapp}}, policyTypes: [Ingress],
  ingress: [{from: [{ipBlock: {cidr: 10.244.0.0/16, except: [%s/32]}}, {ipBlock: {cidr: 'fd00:244::/48', except: ['%s/128']}}],
    ports: [{protocol: TCP, port: 80}]}]`, near.Address(model.IPv4), near.Address(model.IPv6))))
	w.curl("default/near", "dev/pod1", 80, false)
	w.all(clients[1:], "dev/pod1", 80, true)
	w.all(clients, "dev/pod1", 8080, false)
	w.all(clients[:2], "prod/pod1", 8080, true)
	w.command("n1", "", "heddle", "delete", "networkpolicy", "allow-myapp-ingress", "-n", "dev")

	w.step("4. deny-all-egress in prod")
	w.apply(networkPolicy("prod", "deny-all-egress", "podSelector: {}, policyTypes: [Egress]"))
	w.curl("prod/pod1", "dev/pod1", 80, false)
	w.ping("prod/pod1", "default/far", false)
	w.all(clients[:2], "prod/pod1", 80, true) // replies go out

	w.step("5. the same with egress: [{}]")
	w.apply(networkPolicy("prod", "deny-all-egress", "podSelector: {}, policyTypes: [Egress], egress: [{}]"))
	w.curl("prod/pod1", "dev/pod1", 80, true)
	w.ping("prod/pod1", "default/far", true)
}

func networkPolicy(namespace, name, spec string) string {
	return fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: %s}\nspec: {%s}\n", name, namespace, spec)
}

func (w *walkthrough) step(name string) { w.t.Log(name) }

func (w *walkthrough) command(where, stdin string, argv ...string) string {
	w.t.Helper()
	cmd, err := w.l.Command(w.ctx, where, argv...)
	if err != nil {
		w.t.Fatal(err)
	}
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		w.t.Fatalf("%s: %v: %v\n%s", where, argv, err, out)
	}
	return string(out)
}

func (w *walkthrough) apply(yaml string) {
	w.t.Helper()
	w.command("n1", yaml, "heddle", "apply", "-f", "-")
}

// serve answers HTTP in a pod until the test's end.
func (w *walkthrough) serve(pod string, port int) {
	w.t.Helper()
	cmd, err := w.l.Command(w.ctx, pod, "heddle", "lab", "serve", fmt.Sprint(port))
	if err != nil {
		w.t.Fatal(err)
	}
	var out syncBuffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	eventually(w.t, 10*time.Second, "the pod serves", func() error { return out.has("serving") })
}

// curl asks in both families until the answer is as wanted: a policy holds on a node some milliseconds after
// it is written.
func (w *walkthrough) curl(from, to string, port int, works bool) {
	w.t.Helper()
	p := w.ip[to]
	for _, f := range families(p) {
		url := "http://" + net.JoinHostPort(p.Address(f).String(), fmt.Sprint(port)) + "/"
		eventually(w.t, 10*time.Second, fmt.Sprintf("%s asks %s: works %t", from, url, works), func() error {
			out, err := w.l.Exec(w.ctx, from, "curl", "-sS", "-g", "-m", "1", url)
			if (err == nil) != works {
				return fmt.Errorf("%w: %s", err, out)
			}
			if !works && !strings.Contains(out, "timed out") {
				w.t.Fatalf("%s asks %s: %s: want silence, as from a packet that is dropped", from, url, out)
			}
			return nil
		})
	}
}

func (w *walkthrough) all(from []string, to string, port int, works bool) {
	w.t.Helper()
	for _, c := range from {
		w.curl(c, to, port, works)
	}
}

func (w *walkthrough) ping(from, to string, works bool) {
	w.t.Helper()
	p := w.ip[to]
	for _, f := range families(p) {
		eventually(w.t, 10*time.Second, fmt.Sprintf("%s pings %s: works %t", from, p.Address(f), works), func() error {
			out, err := w.l.Exec(w.ctx, from, "ping", "-c1", "-W1", p.Address(f).String())
			if (err == nil) != works {
				return fmt.Errorf("%w: %s", err, out)
			}
			return nil
		})
	}
}

// why wants heddle's own answer, on any node, to name what decides.
func (w *walkthrough) why(from, to string, port int, text string) {
	w.t.Helper()
	for _, node := range w.l.Nodes() {
		eventually(w.t, 10*time.Second, node+" says why", func() error {
			out, _ := w.l.Exec(w.ctx, node, "heddle", "why", from, fmt.Sprintf("%s:%d", to, port)) // exit code 2 says denied
			if !strings.Contains(out, text) {
				return fmt.Errorf("heddle why on %s:\n%s\nwant %q", node, out, text)
			}
			return nil
		})
	}
}

// flow wants the denied packets to a pod in its node's log, with the policy that denied them.
func (w *walkthrough) flow(to, policy string) {
	w.t.Helper()
	eventually(w.t, 10*time.Second, "the log of denied packets", func() error {
		out, err := w.l.Exec(w.ctx, w.ip[to].Node, "heddle", "flows", "--denied")
		for line := range strings.Lines(out) {
			if strings.Contains(line, "-> "+to+" tcp 80") && strings.Contains(line, policy) {
				return nil
			}
		}
		return fmt.Errorf("%w: no line about %s and %s:\n%s", err, to, policy, out)
	})
}
