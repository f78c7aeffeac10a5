package lab

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// explainDecode says what the JSON decoder found in the words of every other input error: the
// decoder's own errors leave out the field when the text of an address is wrong.
func explainDecode(js []byte, err error) error {
	var typ *json.UnmarshalTypeError
	if errors.As(err, &typ) {
		field := typ.Field
		if field == "" {
			field = "document"
		}
		return &model.FieldError{Noun: "topology", Field: field, Value: typ.Value, Want: "a " + typ.Type.Kind().String()}
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return &model.FieldError{
			Noun: "topology", Field: strings.Trim(name, `"`), Value: "(unknown field)",
			Want: "name, about, segments (name, subnets, mtu, nat), nodes (name, segment, addresses, public, store) or hosts (name, segment, addresses)",
		}
	}
	if fe := findBadAddress(js); fe != nil {
		return fe
	}
	return fmt.Errorf("topology: %w", err)
}

// findBadAddress reads the addresses as plain text and points at the first that is none.
func findBadAddress(js []byte) error {
	type machine struct{ Addresses, Public []string }
	var doc struct {
		Segments []struct{ Subnets []string }
		Nodes    []machine
		Hosts    []machine
	}
	if json.Unmarshal(js, &doc) != nil {
		return nil
	}
	for i, s := range doc.Segments {
		for j, text := range s.Subnets {
			if _, err := netip.ParsePrefix(text); err != nil {
				return &model.FieldError{Noun: "topology", Field: fmt.Sprintf("segments[%d].subnets[%d]", i, j), Value: text, Want: "a network address with its prefix length, such as 192.168.100.0/24"}
			}
		}
	}
	check := func(list, field string, i int, texts []string) error {
		for j, text := range texts {
			if _, err := netip.ParseAddr(text); err != nil {
				return &model.FieldError{Noun: "topology", Field: fmt.Sprintf("%s[%d].%s[%d]", list, i, field, j), Value: text, Want: "an IP address, without a prefix length"}
			}
		}
		return nil
	}
	for list, machines := range map[string][]machine{"nodes": doc.Nodes, "hosts": doc.Hosts} {
		for i, m := range machines {
			if err := errors.Join(check(list, "addresses", i, m.Addresses), check(list, "public", i, m.Public)); err != nil {
				return err
			}
		}
	}
	return nil
}
