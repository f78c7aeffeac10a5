package model

import (
	"fmt"
	"net/netip"
)

// Wishes are what a workload asks of its addresses: by its runtime's arguments, or by Calico's annotations on
// its pod.
type Wishes struct {
	// Addresses are just those that it gets, at most one of each family; empty: any.
	Addresses []netip.Addr `json:"addresses,omitempty"`
	// Pools4 and Pools6 are the pools that addresses of the family come from, each by its name or its range;
	// empty: any.
	Pools4 []string `json:"pools4,omitempty"`
	Pools6 []string `json:"pools6,omitempty"`
	// MAC is that of its own end; "": any.
	MAC string `json:"mac,omitempty"`
	// Floating are further addresses by which it is reached.
	Floating []netip.Addr `json:"floating,omitempty"`
	// Invalid says why what was asked for cannot be understood. Such a workload gets no address at all.
	Invalid string `json:"invalid,omitempty"`
}

// Pools are the wished pools of a family.
func (w *Wishes) Pools(f Family) []string {
	if f == IPv4 {
		return w.Pools4
	}
	return w.Pools6
}

// Validate checks what came from outside.
func (w *Wishes) Validate() error {
	if w.Invalid != "" {
		return fmt.Errorf("%s", w.Invalid)
	}
	seen := map[Family]bool{}
	for _, a := range w.Addresses {
		if !usable(a) {
			return &FieldError{"wishes", "addresses", a.String(), "unicast addresses"}
		}
		if seen[FamilyOf(a)] {
			return &FieldError{"wishes", "addresses", fmt.Sprint(w.Addresses), "at most one address of each family"}
		}
		seen[FamilyOf(a)] = true
	}
	for _, a := range w.Floating {
		if !usable(a) {
			return &FieldError{"wishes", "floating", a.String(), "unicast addresses"}
		}
	}
	if w.MAC != "" && !ValidMAC(w.MAC) {
		return &FieldError{"wishes", "mac", quoteShort(w.MAC), "a unicast MAC of six lower-case hex pairs"}
	}
	return nil
}
