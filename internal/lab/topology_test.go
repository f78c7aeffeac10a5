package lab

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
)

func TestBuiltinTopologiesAreValid(t *testing.T) {
	want := []string{"flat", "nat", "two-segments"}
	var got []string
	for _, topo := range Topologies() {
		got = append(got, topo.Name)
		raw, err := TopologyText(topo.Name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseTopology(raw); err != nil {
			t.Errorf("%s: %v", topo.Name, err)
		}
		if topo.About == "" {
			t.Errorf("%s: no about line", topo.Name)
		}
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("built-in topologies %v, want %v", got, want)
	}
}

func TestTopologyFileIsReadLikeABuiltinOne(t *testing.T) {
	raw, err := TopologyText("nat")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "mine.yaml")
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		t.Fatal(err)
	}
	topo, err := LoadTopology(file)
	if err != nil {
		t.Fatal(err)
	}
	if n := topo.node("n3"); n == nil || len(n.Public) != 2 || !topo.segment(n.Segment).NAT {
		t.Errorf("n3 is read as %+v", n)
	}
}

// base is a topology that each case below spoils in one place.
const base = `name: base
segments:
  - {name: a, subnets: [192.168.1.0/24, "fd01::/64"]}
  - {name: in, subnets: [10.9.0.0/24], nat: true}
nodes:
  - {name: n1, segment: a, addresses: [192.168.1.11, "fd01::11"], store: true}
  - {name: n2, segment: in, addresses: [10.9.0.12], public: [198.51.100.12]}
hosts:
  - {name: h1, segment: a, addresses: [192.168.1.20]}
`

func TestTopologyErrorsNameFieldValueAndExpectation(t *testing.T) {
	if _, err := ParseTopology([]byte(base)); err != nil {
		t.Fatalf("the base is wrong: %v", err)
	}
	for _, c := range []struct{ name, old, text, want string }{
		{"unknown field", "nat: true", "nta: true", `topology: nta (unknown field): want name, about, segments (name, subnets, mtu, nat), nodes (name, segment, addresses, public, store) or hosts (name, segment, addresses)`},
		{"wrong type", "store: true", "store: 3", `topology: nodes.store number: want a bool`},
		{"no address", "192.168.1.20", "somewhere", `topology: hosts[0].addresses[0] somewhere: want an IP address, without a prefix length`},
		{"no prefix", "10.9.0.0/24", "10.9.0.0", `topology: segments[1].subnets[0] 10.9.0.0: want a network address with its prefix length, such as 192.168.100.0/24`},
		{"host bits", "10.9.0.0/24", "10.9.0.1/24", `topology "base": segments[1].subnets 10.9.0.1/24: want a network address with its prefix length and room for hosts, such as 192.168.100.0/24`},
		{"overlap", "10.9.0.0/24", "192.168.0.0/16", `topology "base": segments[1].subnets 192.168.0.0/16: want a range apart from 192.168.1.0/24`},
		{"two subnets of a family", `"fd01::/64"`, "10.8.0.0/24", `topology "base": segments[0].subnets [192.168.1.0/24 10.8.0.0/24]: want one subnet, or one of each family`},
		{"segment twice", "name: in,", "name: a,", `topology "base": segments[1].name a: want a name that no other segment has`},
		{"no such segment", "n2, segment: in", "n2, segment: out", `topology "base": nodes[1].segment out: want the name of one of the segments`},
		{"outside of the segment", "10.9.0.12", "10.7.0.12", `topology "base": nodes[1].addresses 10.7.0.12: want an address in [10.9.0.0/24] of segment "in"`},
		{"router's address", "192.168.1.20", "192.168.1.1", `topology "base": hosts[0].addresses 192.168.1.1: want an address that neither the router (the subnet's first) nor another machine has`},
		{"address twice", "192.168.1.20", "192.168.1.11", `topology "base": hosts[0].addresses 192.168.1.11: want an address that neither the router (the subnet's first) nor another machine has`},
		{"machine twice", "name: h1", "name: n1", `topology "base": hosts[0].name n1: want a name that no other machine has (nor the router)`},
		{"router's name", "name: h1", "name: router", `topology "base": hosts[0].name router: want a name that no other machine has (nor the router)`},
		{"long name", "name: h1", "name: abcdefghijklm", `topology "base": hosts[0].name abcdefghijklm: want 1..12 of [a-z0-9-] that begin with a letter and end without a dash`},
		{"public without NAT", "store: true", "store: true, public: [198.51.100.1]", `topology "base": nodes[0].public [198.51.100.1]: want none: segment "a" has no nat`},
		{"NAT without public", ", public: [198.51.100.12]", "", `topology "base": nodes[1].public []: want one address, or one of each family`},
		{"public in a subnet", "198.51.100.12", "192.168.1.77", `topology "base": nodes[1].public 192.168.1.77: want an address of its own, outside of every subnet`},
		{"no store", ", store: true", "", `topology "base": nodes 0 with store: true: want 1 or 3 with store: true`},
		{"store behind NAT", "public:", "store: true, public:", `topology "base": nodes[1].store true: want a node that is not behind NAT`},
		{"mtu", "nat: true", "mtu: 500", `topology "base": segments[1].mtu 500: want 1280..65535, or 0 for 1500`},
	} {
		t.Run(c.name, func(t *testing.T) {
			spoilt := strings.Replace(base, c.old, c.text, 1)
			if spoilt == base {
				t.Fatalf("nothing replaced")
			}
			_, err := ParseTopology([]byte(spoilt))
			var fe *model.FieldError
			if !errors.As(err, &fe) {
				t.Fatalf("got %v, want a FieldError", err)
			}
			if err.Error() != c.want {
				t.Errorf("got  %v\nwant %s", err, c.want)
			}
		})
	}
}

func TestUnknownTopologyListsTheKnown(t *testing.T) {
	_, err := LoadTopology("ring")
	want := `lab: topology ring: want one of flat, nat, two-segments, or a .yaml file`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestNetConfWords(t *testing.T) {
	for word, want := range map[string]string{
		"host-gw":        `{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"host-gw"}}`,
		"vxlan:4":        `{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`,
		"vxlan+direct:6": `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:244::/48","Backend":{"Type":"vxlan","DirectRouting":true}}`,
	} {
		if got, err := NetConf(word); err != nil || strings.TrimSpace(got) != want {
			t.Errorf("%s: got %s, %v\nwant %s", word, got, err, want)
		}
	}
	for _, word := range []string{"ipip", "vxlan:5"} {
		_, err := NetConf(word)
		if want := "lab: net-conf " + word + ": want " + modeWant; err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
}
