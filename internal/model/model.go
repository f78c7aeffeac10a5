// Package model holds Heddle's nouns as plain values: what people wrote and what the cluster is.
//
// Values validate themselves and have one JSON form. The package never does I/O, never reads the
// clock and imports nothing of ours.
package model

import (
	"fmt"
	"net/netip"
	"strings"
)

// Kind names a sort of object as the store files it.
type Kind string

// The kinds that a store holds.
const (
	KindNode      Kind = "nodes"
	KindPool      Kind = "pools"
	KindBlock     Kind = "blocks"
	KindHeartbeat Kind = "heartbeats"
	KindEndpoint  Kind = "endpoints"
	KindResource  Kind = "resources"
	KindSetting   Kind = "settings"
)

// Kinds lists every kind, in the order in which a reader wants them.
func Kinds() []Kind {
	return []Kind{KindPool, KindNode, KindBlock, KindHeartbeat, KindEndpoint, KindResource, KindSetting}
}

// Object is what a store files: it knows its kind, its key and whether it makes sense.
type Object interface {
	Kind() Kind
	// Key is unique within the kind and fit for one path segment: [A-Za-z0-9._:-], never empty.
	Key() string
	// Validate returns a FieldError (or several, joined), or nil.
	Validate() error
}

// New returns a pointer to an empty object of the kind, for decoding; nil for an unknown kind.
func New(k Kind) Object {
	switch k {
	case KindNode:
		return &Node{}
	case KindPool:
		return &Pool{}
	case KindBlock:
		return &Block{}
	case KindHeartbeat:
		return &Heartbeat{}
	case KindEndpoint:
		return &Endpoint{}
	case KindResource:
		return &Resource{}
	case KindSetting:
		return &Setting{}
	}
	return nil
}

// FieldError is the one shape of "this input is wrong": the noun, its field, the value given and
// what was expected.
type FieldError struct {
	Noun  string // what it stands in: `pool "a"`, "net-conf.json"
	Field string // the field as its author spells it
	Value string // as given; empty where there was none
	Want  string // what was expected, in words or as a range
}

func (e *FieldError) Error() string {
	v := e.Value
	if v == "" {
		v = "(empty)"
	}
	return fmt.Sprintf("%s: %s %s: want %s", e.Noun, e.Field, v, e.Want)
}

// Family is an IP version, 4 or 6.
type Family int

// The two families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// FamilyOf tells the family of an address. An IPv4-mapped IPv6 address counts as IPv6.
func FamilyOf(a netip.Addr) Family {
	if a.Is4() {
		return IPv4
	}
	return IPv6
}

// Bits is the length of an address of the family.
func (f Family) Bits() int {
	if f == IPv4 {
		return 32
	}
	return 128
}

func (f Family) String() string { return fmt.Sprintf("IPv%d", int(f)) }

// prefixKey spells a prefix so that it fits one path segment, as Flannel does: 10.244.1.0-24.
func prefixKey(p netip.Prefix) string { return strings.ReplaceAll(p.String(), "/", "-") }
