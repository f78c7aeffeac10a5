package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Op says what happens to a thing between two plans.
type Op string

// The operations.
const (
	Add    Op = "+"
	Remove Op = "-"
	Modify Op = "~"
)

// Change is one difference between two plans.
type Change struct {
	Op   Op     `json:"op"`
	Kind string `json:"kind"` // "link", "address", "route", "neighbor", "fdb", "rule", "sysctl", "set", "bgp", "mtu"
	Key  string `json:"key"`
	// Text is the thing in the words of ip, bridge, sysctl and nft: as it will be, or as it was where it goes.
	Text string `json:"text"`
	// Was is what it was before, for Modify.
	Was string `json:"was,omitempty"`
}

func (c Change) String() string {
	s := fmt.Sprintf("%s %-8s %s", c.Op, c.Kind, c.Text)
	if c.Op == Modify {
		s += "  (was: " + c.Was + ")"
	}
	return s
}

// Diff lists what a kernel equal to old needs to become equal to new, in the order in which Plan names its
// lists; nil when nothing. Peers and Problems are words about a plan, not part of any kernel, and are not
// compared. Applying the changes is the drivers' work, which read the kernel, not this.
func Diff(old, new Plan) []Change {
	var out []Change
	out = diff(out, "link", old.Links, new.Links, func(l Link) string { return l.Name }, linkLine)
	out = diff(out, "address", old.Addresses, new.Addresses, addressLine, addressLine)
	out = diff(out, "route", old.Routes, new.Routes, func(r Route) string { return r.Dst.String() }, routeLine)
	out = diff(out, "neighbor", old.Neighbors, new.Neighbors, func(n Neighbor) string { return n.Link + " " + n.IP.String() },
		func(n Neighbor) string { return strings.Join(neighborWords(n), " ") })
	out = diff(out, "fdb", old.FDB, new.FDB, func(f FDB) string { return f.Link + " " + f.MAC },
		func(f FDB) string { return strings.Join(fdbWords(f), " ") })
	out = diff(out, "rule", old.Rules, new.Rules, func(r Rule) string { return fmt.Sprint(r.Priority) },
		func(r Rule) string { return strings.Join(ruleWords(r), " ") })
	out = diff(out, "sysctl", old.Sysctls, new.Sysctls, func(c Sysctl) string { return c.Key },
		func(c Sysctl) string { return c.Key + "=" + c.Value })
	out = diff(out, "set", old.Filter.elements(), new.Filter.elements(), identity, identity)
	out = diffBGP(out, old.BGP, new.BGP)
	if old.MTU != new.MTU {
		out = append(out, Change{Op: Modify, Kind: "mtu", Key: "mtu", Text: fmt.Sprintf("new workloads get %d", new.MTU), Was: fmt.Sprint(old.MTU)})
	}
	return out
}

// DiffText is the changes as lines for people; "" when there is none.
func DiffText(changes []Change) string {
	var b strings.Builder
	for _, c := range changes {
		b.WriteString(printable(c.String()) + "\n")
	}
	return b.String()
}

func identity(s string) string { return s }

func linkLine(l Link) string {
	s := strings.Join(linkWords(l)[1:], " ") + " alias " + l.Alias
	if l.Master != "" {
		s += " master " + l.Master
	}
	if l.Hairpin {
		s += " hairpin on"
	}
	return s
}

func addressLine(a Address) string { return a.Prefix.String() + " dev " + a.Link }

// elements are all set elements, as "pods4 10.244.0.0/16".
func (f Filter) elements() []string {
	var out []string
	for _, s := range f.Sets() {
		for _, e := range s.words() {
			out = append(out, s.Name+" "+e)
		}
	}
	return out
}

// diff compares two lists by key and by text; what goes comes before what comes, each sorted by key.
func diff[T any](out []Change, kind string, old, new []T, key, text func(T) string) []Change {
	was := make(map[string]string, len(old))
	for _, o := range old {
		was[key(o)] = text(o)
	}
	var gone, come []Change
	kept := make(map[string]bool, len(new))
	for _, n := range new {
		k, t := key(n), text(n)
		kept[k] = true
		switch before, ok := was[k]; {
		case !ok:
			come = append(come, Change{Op: Add, Kind: kind, Key: k, Text: t})
		case before != t:
			come = append(come, Change{Op: Modify, Kind: kind, Key: k, Text: t, Was: before})
		}
	}
	for _, o := range old {
		if k := key(o); !kept[k] {
			gone = append(gone, Change{Op: Remove, Kind: kind, Key: k, Text: was[k]})
		}
	}
	byKey := func(a, b Change) int { return cmp.Compare(a.Key, b.Key) }
	slices.SortStableFunc(gone, byKey)
	slices.SortStableFunc(come, byKey)
	return append(append(out, gone...), come...)
}
