package why

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/policy"
	"github.com/heddle-net/heddle/internal/selector"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func TestQuestionsAreReadAsPeopleWriteThem(t *testing.T) {
	for _, tt := range []struct {
		from, to string
		want     Question
		wrong    string // of the error; empty: none
	}{
		{"dev/a", "prod/b:80", Question{"dev/a", "prod/b", ProtocolTCP, 80}, ""},
		{"dev/a", "prod/b:53/udp", Question{"dev/a", "prod/b", ProtocolUDP, 53}, ""},
		{"dev/a", "prod/b:9/SCTP", Question{"dev/a", "prod/b", ProtocolSCTP, 9}, ""},
		{"dev/a", "prod/b", Question{From: "dev/a", To: "prod/b"}, ""},
		{"10.0.0.1", "10.0.0.2:443", Question{"10.0.0.1", "10.0.0.2", ProtocolTCP, 443}, ""},
		{"fd00::1", "fd00::2", Question{From: "fd00::1", To: "fd00::2"}, ""},
		{"fd00::1", "[fd00::2]:443", Question{"fd00::1", "fd00::2", ProtocolTCP, 443}, ""},
		{"dev", "prod/b:80", Question{}, "heddle why: FROM dev: want NAMESPACE/NAME"},
		{"dev/a/b", "prod/b:80", Question{}, "heddle why: FROM dev/a/b: want NAMESPACE/NAME"},
		{"dev/a", "prod:80", Question{}, "heddle why: TO prod:80: want NAMESPACE/NAME"},
		{"dev/a", "prod/b:http", Question{}, "heddle why: PORT http: want 0..65535"},
		{"dev/a", "prod/b:65536", Question{}, "heddle why: PORT 65536: want 0..65535"},
		{"dev/a", "prod/b:80/tpc", Question{}, "heddle why: PROTO tpc: want tcp, udp or sctp"},
		{"dev/a", "prod/b:80/icmp", Question{}, "heddle why: PROTO icmp: want tcp, udp or sctp; leave out the port for a ping"},
		{"", "", Question{}, "heddle why: FROM (empty): want"},
	} {
		q, err := ParseQuestion(tt.from, tt.to)
		if tt.wrong == "" && (err != nil || q != tt.want) {
			t.Errorf("%s %s: %+v, %v; want %+v", tt.from, tt.to, q, err, tt.want)
		}
		if tt.wrong != "" && (err == nil || !strings.HasPrefix(err.Error(), tt.wrong)) {
			t.Errorf("%s %s: %v, want %s", tt.from, tt.to, err, tt.wrong)
		}
	}
}

// world has a in dev on n1, b and c in prod on n2, and a policy that lets a's app reach b's on port 80.
func world(more ...policy.Object) map[string]policy.Object {
	endpoint := func(ns, name, node, a4, a6 string) *policy.Endpoint {
		return &policy.Endpoint{Key: node + ":" + name, Node: node, Namespace: ns, Name: name, Labels: map[string]string{"app": name}, Addresses: []netip.Addr{addr(a4), addr(a6)}}
	}
	objects := []policy.Object{
		endpoint("dev", "a", "n1", "10.0.1.2", "fd00:1::2"), endpoint("prod", "b", "n2", "10.0.2.2", "fd00:2::2"), endpoint("prod", "c", "n2", "10.0.2.3", "fd00:2::3"),
	}
	out := map[string]policy.Object{}
	for i, o := range append(objects, more...) {
		out[string(rune('a'+i))] = o
	}
	return out
}

func onlyA(port uint16) *policy.Policy {
	s := selector.Equal("app", "a")
	return &policy.Policy{
		Ref: policy.Ref{Kind: "NetworkPolicy", Namespace: "prod", Name: "b"}, Tier: policy.DefaultTier, Order: policy.KubernetesOrder,
		Subject: selector.Equal("app", "b"), AppliesIngress: true,
		Ingress: []policy.Rule{{Action: policy.Allow, Protocol: ProtocolTCP, NotProtocol: policy.AnyProtocol, Source: policy.Side{Selector: &s}, Dest: policy.Side{Ports: []policy.Port{{First: port, Last: port}}}}},
	}
}

func ask(t *testing.T, objects map[string]policy.Object, from, to string) []Answer {
	t.Helper()
	q, err := ParseQuestion(from, to)
	if err != nil {
		t.Fatal(err)
	}
	nodes := []model.Node{{Name: "n1", Address4: addr("192.168.0.1")}, {Name: "n2", Address4: addr("192.168.0.2")}}
	answers, err := Ask(World{Objects: maps.All(objects), Nodes: nodes}, q)
	if err != nil {
		t.Fatal(err)
	}
	return answers
}

func TestAnswersNameWhatDecides(t *testing.T) {
	objects := world(onlyA(80))
	for _, tt := range []struct {
		from, to string
		allowed  bool
		text     string
	}{
		{"dev/a", "prod/b:80", true, "ingress of prod/b on n2: allowed by rule 1 of NetworkPolicy prod/b"},
		{"dev/a", "prod/b:81", false, "ingress of prod/b on n2: denied at the end of tier default: NetworkPolicy prod/b selects it and no rule of it matches"},
		{"dev/a", "prod/b", false, "icmp echo: denied"},
		{"prod/c", "prod/b:80", false, "denied at the end of tier default"},
		{"prod/b", "dev/a:80", true, "egress  of prod/b on n2: allowed, no policy selects it"},
		{"192.168.0.2", "prod/b:80", true, "ingress of prod/b on n2: allowed: own node"},
		{"192.168.0.1", "prod/b:80", false, "denied at the end of tier default"},
		{"192.0.2.1", "198.51.100.1:80", true, "neither end is a workload of this network"},
	} {
		for _, a := range ask(t, objects, tt.from, tt.to) {
			if a.Allowed != tt.allowed {
				t.Errorf("%s to %s (%s): allowed %t, want %t", tt.from, tt.to, a.Src, a.Allowed, tt.allowed)
			}
			if text := a.Text(); a.Src.Is4() && !strings.Contains(text, tt.text) {
				t.Errorf("%s to %s:\n%swant %q", tt.from, tt.to, text, tt.text)
			}
		}
	}
	if n := len(ask(t, objects, "dev/a", "prod/b:80")); n != 2 {
		t.Errorf("two families have %d answers", n)
	}
	if _, err := Ask(World{Objects: maps.All(objects)}, Question{From: "dev/nobody", To: "prod/b"}); err == nil || !strings.Contains(err.Error(), "FROM dev/nobody: want a workload that is there") {
		t.Errorf("an unknown workload: %v", err)
	}
	if _, err := Ask(World{Objects: maps.All(objects)}, Question{From: "192.0.2.1", To: "fd00:2::2"}); err == nil || !strings.Contains(err.Error(), "an address of a family") {
		t.Errorf("two families in one question: %v", err)
	}
}

func TestCheckTellsWhichPairsAndPortsChange(t *testing.T) {
	before, after := world(onlyA(80)), world(onlyA(443))
	got := Check(World{Objects: maps.All(before)}, World{Objects: maps.All(after)})
	var lines []string
	for _, o := range got.Outcomes {
		verb := "denied"
		if o.Allowed {
			verb = "allowed"
		}
		lines = append(lines, strings.Join([]string{o.Direction, o.Workload, strings.Join(o.Peers, ","), ProtocolName(o.Protocol), o.Ports, verb}, " "))
	}
	want := []string{"ingress prod/b dev/a tcp 443 allowed", "ingress prod/b dev/a tcp 80 denied"}
	slices.Sort(lines)
	if !slices.Equal(lines, want) {
		t.Errorf("got %q, want %q", lines, want)
	}
	if got := Check(World{Objects: maps.All(before)}, World{Objects: maps.All(before)}); len(got.Outcomes) != 0 || got.Pairs == 0 {
		t.Errorf("no change: %+v", got)
	}
	// A first policy closes all but what it names.
	got = Check(World{Objects: maps.All(world())}, World{Objects: maps.All(before)})
	ports := map[string]bool{}
	for _, o := range got.Outcomes {
		if o.Workload != "prod/b" || o.Direction != "ingress" || o.Allowed {
			t.Errorf("unexpected outcome %+v", o)
		}
		if slices.Contains(o.Peers, "dev/a") && o.Protocol == ProtocolTCP {
			ports[o.Ports] = true
		}
	}
	if !maps.Equal(ports, map[string]bool{"0-79": true, "81-65535": true}) {
		t.Errorf("for dev/a the first policy closes %v, want all but 80", ports)
	}
}
