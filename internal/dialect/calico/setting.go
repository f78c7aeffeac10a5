package calico

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/heddle-net/heddle/internal/model"
)

// settingKinds are the kinds about the network itself.
var settingKinds = map[string]struct {
	empty func() object
	// lenient: the rest of an object counts when it has fields that cannot be honoured. Where such a field may be
	// what keeps others out, nothing of it counts.
	lenient bool
}{
	"IPPool":             {func() object { return new(IPPool) }, true},
	"IPReservation":      {func() object { return new(IPReservation) }, true},
	"IPAMConfiguration":  {func() object { return new(IPAMConfiguration) }, true},
	"IPAMConfig":         {func() object { return new(IPAMConfiguration) }, true},
	"BGPConfiguration":   {func() object { return new(BGPConfiguration) }, true},
	"BGPPeer":            {func() object { return new(BGPPeer) }, false},
	"BGPFilter":          {func() object { return new(BGPFilter) }, false},
	"Node":               {func() object { return new(Node) }, true},
	"FelixConfiguration": {func() object { return new(FelixConfiguration) }, true},
}

// IsSetting reports whether a resource is about the network itself, and so a model.Setting.
func IsSetting(r *model.Resource) bool {
	_, ok := settingKinds[r.Type]
	return ok && (r.APIVersion == Group+"/v3" || r.APIVersion == CRDGroup+"/v1")
}

// CheckSetting refuses what Network would not honour whole. Errors are *model.FieldError.
func CheckSetting(r *model.Resource) error {
	_, parts, err := readSetting(r)
	if len(parts) > 0 {
		return parts[0]
	}
	return err
}

// DecodeSetting returns the typed object of a setting, such as *IPPool, as far as it has fields that are known: for
// tables. Errors are *model.FieldError.
func DecodeSetting(r *model.Resource) (any, error) {
	kind, ok := settingKinds[r.Type]
	if !ok || !IsSetting(r) {
		return nil, &model.FieldError{Noun: r.String(), Field: "kind", Value: r.APIVersion + " " + r.Type, Want: "a kind about the network of " + Group + "/v3"}
	}
	o := kind.empty()
	if _, err := decodeInto(r, o, false); err != nil {
		return nil, err
	}
	return o, nil
}

// readSetting reads a setting by itself. parts are fields that cannot be honoured, of an object that counts
// otherwise.
func readSetting(r *model.Resource) (into func(*reading), parts []error, err error) {
	kind, ok := settingKinds[r.Type]
	if !ok || !IsSetting(r) {
		return nil, nil, &model.FieldError{Noun: r.String(), Field: "kind", Value: r.APIVersion + " " + r.Type, Want: "a kind about the network of " + Group + "/v3"}
	}
	o := kind.empty()
	parts, err = decodeInto(r, o, false)
	if err == nil && len(parts) > 0 && !kind.lenient {
		return nil, nil, parts[0]
	}
	if err != nil {
		return nil, parts, err
	}
	at := place{noun: r.String()}
	more := func(e error) { parts = append(parts, e) }
	switch o := o.(type) {
	case *IPPool:
		into, err = at.ippool(o)
	case *IPReservation:
		into, err = at.ipreservation(o)
	case *IPAMConfiguration:
		into, err = at.ipam(o)
	case *BGPConfiguration:
		into, err = at.bgpConfiguration(o, more)
	case *BGPPeer:
		into, err = at.bgpPeer(o)
	case *BGPFilter:
		into, err = at.bgpFilter(o)
	case *Node:
		into, err = at.node(o)
	case *FelixConfiguration:
		into, err = at.felix(o, more)
	}
	return into, parts, err
}

// only refuses names that mean nothing.
func (p place) only(o object, names ...string) error {
	for _, n := range names {
		if n == o.meta().Name {
			return nil
		}
	}
	return p.field("metadata.name").bad(o.meta().Name, strings.Join(names, " or "))
}

// oneOf refuses other texts than these; the first one stands for none.
func (p place) oneOf(text string, allowed ...string) (string, error) {
	if text == "" {
		return allowed[0], nil
	}
	for _, a := range allowed {
		if text == a {
			return text, nil
		}
	}
	return "", p.bad(text, strings.Join(allowed, " or "))
}

// asn reads the number of an AS, plain or as two of 16 bits with a dot (RFC 5396); 0 for none.
func (p place) asn(a *ASNumber) (uint32, error) {
	if a == nil {
		return 0, nil
	}
	high, low, dotted := strings.Cut(string(*a), ".")
	if !dotted {
		high, low = "0", high
	}
	bits := 32
	if dotted {
		bits = 16
	}
	h, err1 := strconv.ParseUint(high, 10, 16)
	l, err2 := strconv.ParseUint(low, 10, bits)
	n := uint32(h<<16 | l)
	// RFC 7607 and RFC 7300: the first and the last are nobody's; 23456 stands for those that need 4 bytes.
	if err1 != nil || err2 != nil || n == 0 || n == 1<<32-1 || n == 23456 {
		return 0, p.bad(string(*a), "the number of an AS, 1..4294967294 and not 23456, or 1.10")
	}
	return n, nil
}

// duration reads a time of whole seconds between bounds, as Go and Kubernetes write them; 0 for none.
func (p place) duration(text string, least, most time.Duration) (time.Duration, error) {
	if text == "" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < least || d > most || d%time.Second != 0 {
		return 0, p.bad(text, fmt.Sprintf("whole seconds from %s to %s, such as 90s", least, most))
	}
	return d, nil
}

// number is a number between bounds; 0 for none.
func (p place) number(n *int, least, most int) (int, error) {
	if n == nil {
		return 0, nil
	}
	if *n < least || *n > most {
		return 0, p.bad(*n, fmt.Sprintf("%d..%d", least, most))
	}
	return *n, nil
}

// annotationPrefix begins the annotations by which objects of Calico say what Calico has no field for.
const annotationPrefix = "heddle.net/"

// annotations calls one for every annotation that is meant for Heddle, and refuses those that are unknown.
func (p place) annotations(m *Meta, known map[string]func(place, string) error) error {
	for _, key := range sortedKeys(m.Annotations) {
		name, ours := strings.CutPrefix(key, annotationPrefix)
		if !ours {
			continue
		}
		at := p.field("metadata.annotations." + key)
		read, ok := known[name]
		if !ok {
			return at.bad(m.Annotations[key], "nothing: a "+m.Kind+" has no such annotation")
		}
		if err := read(at, m.Annotations[key]); err != nil {
			return err
		}
	}
	return nil
}
