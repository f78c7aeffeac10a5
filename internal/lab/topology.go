package lab

import (
	"bytes"
	"embed"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
	"sigs.k8s.io/yaml"
)

//go:embed topologies/*.yaml
var embedded embed.FS

// Topology is the wiring of a lab: L2 segments that one router joins, nodes and plain hosts in them.
// The router holds the first address of every subnet and is everybody's default gateway.
type Topology struct {
	Name     string    `json:"name"`
	About    string    `json:"about,omitempty"` // one line for people
	Segments []Segment `json:"segments"`
	Nodes    []NodeAt  `json:"nodes"`
	Hosts    []HostAt  `json:"hosts,omitempty"`
}

// Segment is one broadcast domain.
type Segment struct {
	Name string `json:"name"`
	// Subnets are at most one per family.
	Subnets []netip.Prefix `json:"subnets"`
	MTU     int            `json:"mtu,omitempty"` // bytes; 0: 1500
	// NAT hides the segment: its nodes are reached by their public addresses alone, translated 1:1.
	NAT bool `json:"nat,omitempty"`
}

// HostAt is a machine without Heddle on it.
type HostAt struct {
	Name      string       `json:"name"`
	Segment   string       `json:"segment"`
	Addresses []netip.Addr `json:"addresses"` // at most one per family, inside the segment's subnets
}

// NodeAt is a machine that runs Heddle.
type NodeAt struct {
	HostAt
	// Public are the addresses that others use for a node in a NAT segment, one per family it has.
	Public []netip.Addr `json:"public,omitempty"`
	// Labels, ASN and ClusterID are those of its heddle.yaml.
	Labels    map[string]string `json:"labels,omitempty"`
	ASN       uint32            `json:"asn,omitempty"`
	ClusterID netip.Addr        `json:"clusterID,omitzero"`
	// Store says that a member of the embedded store runs here.
	Store bool `json:"store,omitempty"`
}

// routerName is the machine that joins the segments.
const routerName = "router"

// Machine names become interface names ("to-" and the name), which have at most 15 bytes.
var machineRE = regexp.MustCompile(`^[a-z]([a-z0-9-]{0,10}[a-z0-9])?$`)

const machineWant = "1..12 of [a-z0-9-] that begin with a letter and end without a dash"

// Topologies lists the built-in topologies, sorted by name.
func Topologies() []Topology {
	entries, err := fs.ReadDir(embedded, "topologies")
	if err != nil {
		panic(err) // embedded at build time
	}
	var all []Topology
	for _, e := range entries {
		t, err := builtin(strings.TrimSuffix(e.Name(), ".yaml"))
		if err != nil {
			panic(err) // the same: and TestBuiltinTopologiesAreValid sees it first
		}
		all = append(all, t)
	}
	return all
}

func builtin(name string) (Topology, error) {
	raw, err := TopologyText(name)
	if err != nil {
		return Topology{}, err
	}
	return ParseTopology(raw)
}

// TopologyText returns a built-in topology as its YAML file has it.
func TopologyText(name string) ([]byte, error) {
	raw, err := embedded.ReadFile("topologies/" + name + ".yaml")
	if err == nil {
		return raw, nil
	}
	var names []string
	entries, _ := fs.ReadDir(embedded, "topologies")
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	return nil, &model.FieldError{Noun: "lab", Field: "topology", Value: name, Want: "one of " + strings.Join(names, ", ") + ", or a .yaml file"}
}

// LoadTopology takes a built-in topology's name, or the path of a YAML file (told by a slash or by
// its ending).
func LoadTopology(nameOrFile string) (Topology, error) {
	if !strings.Contains(nameOrFile, "/") && !strings.HasSuffix(nameOrFile, ".yaml") && !strings.HasSuffix(nameOrFile, ".yml") {
		return builtin(nameOrFile)
	}
	raw, err := os.ReadFile(nameOrFile)
	if err != nil {
		return Topology{}, fmt.Errorf("topology: %w", err)
	}
	t, err := ParseTopology(raw)
	if err != nil {
		return Topology{}, fmt.Errorf("%s: %w", nameOrFile, err)
	}
	return t, nil
}

// ParseTopology reads YAML, refuses what it does not know, and validates.
func ParseTopology(raw []byte) (Topology, error) {
	var t Topology
	js, err := yaml.YAMLToJSONStrict(raw)
	if err != nil {
		return t, fmt.Errorf("topology: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(js))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&t); err != nil {
		return t, explainDecode(js, err)
	}
	return t, t.Validate()
}

// Validate returns the first error, a model.FieldError.
func (t *Topology) Validate() error {
	if !machineRE.MatchString(t.Name) {
		return &model.FieldError{Noun: "topology", Field: "name", Value: t.Name, Want: machineWant}
	}
	noun := fmt.Sprintf("topology %q", t.Name)
	if len(t.Segments) == 0 {
		return &model.FieldError{Noun: noun, Field: "segments", Want: "at least one"}
	}
	if len(t.Nodes) == 0 {
		return &model.FieldError{Noun: noun, Field: "nodes", Want: "at least one"}
	}
	var nets []netip.Prefix
	for i, s := range t.Segments {
		if err := s.validate(noun, fmt.Sprintf("segments[%d].", i), nets); err != nil {
			return err
		}
		if slices.ContainsFunc(t.Segments[:i], func(o Segment) bool { return o.Name == s.Name }) {
			return &model.FieldError{Noun: noun, Field: fmt.Sprintf("segments[%d].name", i), Value: s.Name, Want: "a name that no other segment has"}
		}
		nets = append(nets, s.Subnets...)
	}
	seen := &taken{names: map[string]bool{routerName: true}, addrs: map[netip.Addr]bool{}}
	stores := 0
	for i, n := range t.Nodes {
		field := fmt.Sprintf("nodes[%d].", i)
		if err := t.validateHost(noun, field, n.HostAt, seen); err != nil {
			return err
		}
		if err := t.validatePublic(noun, field, n, nets, seen); err != nil {
			return err
		}
		if n.Store {
			stores++
			if t.segment(n.Segment).NAT {
				return &model.FieldError{Noun: noun, Field: field + "store", Value: "true", Want: "a node that is not behind NAT"}
			}
		}
	}
	if stores != 1 && stores != 3 {
		return &model.FieldError{Noun: noun, Field: "nodes", Value: fmt.Sprintf("%d with store: true", stores), Want: "1 or 3 with store: true"}
	}
	for i, h := range t.Hosts {
		if err := t.validateHost(noun, fmt.Sprintf("hosts[%d].", i), h, seen); err != nil {
			return err
		}
	}
	return nil
}

type taken struct {
	names map[string]bool
	addrs map[netip.Addr]bool
}

func (s *Segment) validate(noun, field string, others []netip.Prefix) error {
	if !machineRE.MatchString(s.Name) {
		return &model.FieldError{Noun: noun, Field: field + "name", Value: s.Name, Want: machineWant}
	}
	if len(s.Subnets) == 0 || len(s.Subnets) > 2 || len(s.Subnets) == 2 && s.Subnets[0].Addr().Is4() == s.Subnets[1].Addr().Is4() {
		return &model.FieldError{Noun: noun, Field: field + "subnets", Value: fmt.Sprint(s.Subnets), Want: "one subnet, or one of each family"}
	}
	for _, p := range s.Subnets {
		if p != p.Masked() || p.Addr().BitLen()-p.Bits() < 2 {
			return &model.FieldError{Noun: noun, Field: field + "subnets", Value: p.String(), Want: "a network address with its prefix length and room for hosts, such as 192.168.100.0/24"}
		}
		for _, o := range others {
			if p.Overlaps(o) {
				return &model.FieldError{Noun: noun, Field: field + "subnets", Value: p.String(), Want: "a range apart from " + o.String()}
			}
		}
	}
	if s.MTU != 0 && (s.MTU < 1280 || s.MTU > 65535) {
		return &model.FieldError{Noun: noun, Field: field + "mtu", Value: fmt.Sprint(s.MTU), Want: "1280..65535, or 0 for 1500"}
	}
	return nil
}

func (t *Topology) validateHost(noun, field string, h HostAt, seen *taken) error {
	if !machineRE.MatchString(h.Name) {
		return &model.FieldError{Noun: noun, Field: field + "name", Value: h.Name, Want: machineWant}
	}
	if seen.names[h.Name] {
		return &model.FieldError{Noun: noun, Field: field + "name", Value: h.Name, Want: "a name that no other machine has (nor the router)"}
	}
	seen.names[h.Name] = true
	seg := t.segment(h.Segment)
	if seg == nil {
		return &model.FieldError{Noun: noun, Field: field + "segment", Value: h.Segment, Want: "the name of one of the segments"}
	}
	if err := onePerFamily(noun, field+"addresses", h.Addresses); err != nil {
		return err
	}
	for _, a := range h.Addresses {
		p := seg.subnetOf(a)
		if !p.IsValid() {
			return &model.FieldError{Noun: noun, Field: field + "addresses", Value: a.String(), Want: fmt.Sprintf("an address in %v of segment %q", seg.Subnets, seg.Name)}
		}
		if a == gateway(p) || a == p.Addr() || seen.addrs[a] {
			return &model.FieldError{Noun: noun, Field: field + "addresses", Value: a.String(), Want: "an address that neither the router (the subnet's first) nor another machine has"}
		}
		seen.addrs[a] = true
	}
	return nil
}

func (t *Topology) validatePublic(noun, field string, n NodeAt, nets []netip.Prefix, seen *taken) error {
	field += "public"
	if !t.segment(n.Segment).NAT {
		if len(n.Public) > 0 {
			return &model.FieldError{Noun: noun, Field: field, Value: fmt.Sprint(n.Public), Want: "none: segment \"" + n.Segment + "\" has no nat"}
		}
		return nil
	}
	if err := onePerFamily(noun, field, n.Public); err != nil {
		return err
	}
	for _, a := range n.Addresses {
		if !pick(n.Public, model.FamilyOf(a)).IsValid() {
			return &model.FieldError{Noun: noun, Field: field, Value: fmt.Sprint(n.Public), Want: "a public address for " + a.String()}
		}
	}
	for _, a := range n.Public {
		if slices.ContainsFunc(nets, func(p netip.Prefix) bool { return p.Contains(a) }) || seen.addrs[a] {
			return &model.FieldError{Noun: noun, Field: field, Value: a.String(), Want: "an address of its own, outside of every subnet"}
		}
		if !pick(n.Addresses, model.FamilyOf(a)).IsValid() {
			return &model.FieldError{Noun: noun, Field: field, Value: a.String(), Want: "a family that the node has an address of"}
		}
		seen.addrs[a] = true
	}
	return nil
}

func onePerFamily(noun, field string, as []netip.Addr) error {
	if len(as) == 0 || len(as) > 2 || len(as) == 2 && as[0].Is4() == as[1].Is4() {
		return &model.FieldError{Noun: noun, Field: field, Value: fmt.Sprint(as), Want: "one address, or one of each family"}
	}
	return nil
}

func (t *Topology) segment(name string) *Segment {
	for i := range t.Segments {
		if t.Segments[i].Name == name {
			return &t.Segments[i]
		}
	}
	return nil
}

func (t *Topology) node(name string) *NodeAt {
	for i := range t.Nodes {
		if t.Nodes[i].Name == name {
			return &t.Nodes[i]
		}
	}
	return nil
}

// subnetOf is the segment's subnet that holds a; the zero Prefix when none does.
func (s *Segment) subnetOf(a netip.Addr) netip.Prefix {
	for _, p := range s.Subnets {
		if p.Contains(a) {
			return p
		}
	}
	return netip.Prefix{}
}

func (s *Segment) mtu() int {
	if s.MTU == 0 {
		return 1500
	}
	return s.MTU
}

// gateway is the router's address in a subnet: its first.
func gateway(p netip.Prefix) netip.Addr { return p.Addr().Next() }

// pick is the address of a family; the zero Addr when there is none.
func pick(as []netip.Addr, f model.Family) netip.Addr {
	for _, a := range as {
		if model.FamilyOf(a) == f {
			return a
		}
	}
	return netip.Addr{}
}
