package cni

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"

	"github.com/heddle-net/heddle/internal/cni/wire"
	"github.com/heddle-net/heddle/internal/model"
)

// conf is a plugin's network configuration as a runtime sends it on standard input.
type conf struct {
	CNIVersion string
	Name       string
	DNS        types.DNS
	// What the runtime says of the workload; set by refuse.
	Labels    map[string]string
	HostPorts []model.HostPort
	Bandwidth *model.Bandwidth
	// What it asks of the workload's addresses, and where; set by refuse.
	ArgIPs, RuntimeIPs []netip.Addr
	MAC                string
	Pools4, Pools6     []string

	raw map[string]json.RawMessage
}

// Keys of the specification that say nothing to Heddle: "type" chose the plugin, "ipMasq" is what a pool
// decides, "socket" is the plugin's.
var ignoredKeys = []string{"type", "ipMasq", "disableCheck", "disableGC", "socket"}

// keys that parseConf and the verbs read; of "args", what is read or refused below, the rest is for other
// plugins.
var knownKeys = []string{"cniVersion", "name", "dns", "args", "prevResult", "capabilities", "runtimeConfig", "ipam"}

// parseConf decodes what every verb needs and checks the version. DEL and GC take a configuration as
// lenient as that; the others call refuse as well.
func parseConf(stdin []byte) (*conf, *Error) {
	c := &conf{}
	if len(bytes.TrimSpace(stdin)) == 0 {
		return nil, Errorf(CodeDecode, "network configuration: standard input is empty: want a JSON object")
	}
	if err := json.Unmarshal(stdin, &c.raw); err != nil {
		return nil, Errorf(CodeDecode, "network configuration: %s", jsonReason(err))
	}
	if c.raw == nil {
		return nil, Errorf(CodeDecode, "network configuration: null: want a JSON object")
	}
	for key, to := range map[string]any{"cniVersion": &c.CNIVersion, "name": &c.Name} {
		if err := c.decode(key, to); err != nil {
			return nil, err
		}
	}
	versions := wire.Versions()
	if !slices.Contains(versions, c.CNIVersion) {
		err := &model.FieldError{Noun: "network configuration", Field: "cniVersion", Value: short(c.CNIVersion), Want: "one of " + strings.Join(versions, ", ")}
		return nil, Errorf(CodeIncompatibleVersion, "%v", err)
	}
	// The rule for network names is the one for container ids (spec 1.1.0, "Configuration format").
	if !model.ValidContainerID(c.Name) {
		err := &model.FieldError{Noun: "network configuration", Field: "name", Value: short(c.Name), Want: "1..255 characters of [A-Za-z0-9_.-] that begin with a letter or digit"}
		return nil, Errorf(CodeInvalidConfig, "%v", err)
	}
	return c, nil
}

func (c *conf) decode(key string, to any) *Error {
	raw, ok := c.raw[key]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(raw, to); err != nil {
		return Errorf(CodeDecode, "network configuration: %s: %s", key, jsonReason(err))
	}
	return nil
}

// jsonReason says without Go's own names what is wrong with JSON.
func jsonReason(err error) string {
	var bad *json.UnmarshalTypeError
	if !errors.As(err, &bad) {
		return strings.TrimPrefix(err.Error(), "json: ")
	}
	want := map[reflect.Kind]string{
		reflect.Map: "an object", reflect.Struct: "an object", reflect.Slice: "a list", reflect.String: "a string", reflect.Bool: "true or false",
	}[bad.Type.Kind()]
	if want == "" {
		want = "a value of another kind"
	}
	if bad.Field != "" {
		return fmt.Sprintf("%s: %s: want %s", bad.Field, bad.Value, want)
	}
	return fmt.Sprintf("%s: want %s", bad.Value, want)
}

// atLeast compares versions of wire.Versions, whose order is the order of their text.
func (c *conf) atLeast(version string) bool { return c.CNIVersion >= version }

// refuse names the first thing asked for that Heddle would ignore otherwise, or that makes no sense.
func (c *conf) refuse() *Error {
	for _, key := range slices.Sorted(maps.Keys(c.raw)) {
		if !slices.Contains(ignoredKeys, key) && !slices.Contains(knownKeys, key) && !strings.HasPrefix(key, "cni.dev/") {
			return c.unsupported(key, c.raw[key], "it to be absent: heddle is configured by its agent")
		}
	}
	if err := c.decode("dns", &c.DNS); err != nil {
		return err
	}
	if ipam, ok := c.raw["ipam"]; ok && !empty(ipam) {
		if err := c.parseIPAM(ipam); err != nil {
			return err
		}
	}
	var capabilities map[string]bool
	var runtimeConfig map[string]json.RawMessage
	var args struct {
		CNI map[string]json.RawMessage `json:"cni"`
	}
	for key, to := range map[string]any{"capabilities": &capabilities, "runtimeConfig": &runtimeConfig, "args": &args} {
		if err := c.decode(key, to); err != nil {
			return err
		}
	}
	for _, name := range sortedKeys(capabilities) {
		if capabilities[name] && !slices.Contains(capabilityNames, name) {
			return c.unsupported("capabilities."+name, []byte("true"), "it to be absent: heddle has no such capability")
		}
	}
	if err := c.parseRuntimeConfig(runtimeConfig, sortedKeys(runtimeConfig)); err != nil {
		return err
	}
	if ips, ok := args.CNI["ips"]; ok && !empty(ips) {
		addrs, err := c.parseIPs("args.cni.ips", ips)
		if err != nil {
			return err
		}
		c.ArgIPs = addrs
	}
	labels, err := c.parseLabels(args.CNI["labels"])
	c.Labels = labels
	return err
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func (c *conf) unsupported(field string, value []byte, want string) *Error {
	err := &model.FieldError{Noun: fmt.Sprintf("network %q", c.Name), Field: field, Value: short(string(value)), Want: want}
	return Errorf(CodeUnsupportedField, "%v", err)
}

// empty reports whether a JSON value asks for nothing.
func empty(raw json.RawMessage) bool {
	switch string(bytes.TrimSpace(raw)) {
	case "null", "{}", "[]", `""`, "false":
		return true
	}
	return false
}

// hasPrev reports whether another plugin came before.
func (c *conf) hasPrev() bool {
	return len(c.raw["prevResult"]) > 0 && string(c.raw["prevResult"]) != "null"
}

// prevAddresses reads from prevResult the addresses that ADD gave the interface. Those that a later
// plugin gave to others are left out.
func (c *conf) prevAddresses(ifName string) ([]netip.Addr, *Error) {
	if !c.hasPrev() {
		return nil, Errorf(CodeInvalidConfig, "network %q: prevResult (empty): want what ADD answered", c.Name)
	}
	var fields map[string]json.RawMessage
	if err := c.decode("prevResult", &fields); err != nil {
		return nil, err
	}
	// Before 1.0.0 a result need not name its version: it is the configuration's.
	if _, ok := fields["cniVersion"]; !ok && fields != nil {
		fields["cniVersion"] = c.raw["cniVersion"]
	}
	versioned, err := json.Marshal(fields)
	if err != nil {
		return nil, Errorf(CodeDecode, "network %q: prevResult: %v", c.Name, err)
	}
	result, err := create.Create(c.CNIVersion, versioned)
	if err != nil {
		return nil, Errorf(CodeDecode, "network %q: prevResult: %s", c.Name, jsonReason(err))
	}
	prev, err := types100.GetResult(result)
	if err != nil {
		return nil, Errorf(CodeDecode, "network %q: prevResult: %v", c.Name, err)
	}
	var addrs []netip.Addr
	for i, ip := range prev.IPs {
		if ip == nil {
			continue
		}
		if n := ip.Interface; n != nil {
			if *n < 0 || *n >= len(prev.Interfaces) || prev.Interfaces[*n] == nil {
				return nil, Errorf(CodeInvalidConfig, "network %q: prevResult.ips[%d].interface %d: want an index into its %d interfaces", c.Name, i, *n, len(prev.Interfaces))
			}
			if on := prev.Interfaces[*n]; on.Name != ifName || on.Sandbox == "" {
				continue
			}
		}
		a, ok := netip.AddrFromSlice(ip.Address.IP)
		if !ok {
			return nil, Errorf(CodeInvalidConfig, "network %q: prevResult.ips[%d].address %s: want an address with its prefix length", c.Name, i, ip.Address.String())
		}
		addrs = append(addrs, a.Unmap())
	}
	if len(addrs) == 0 {
		return nil, Errorf(CodeInvalidConfig, "network %q: prevResult.ips: want an address of interface %q", c.Name, ifName)
	}
	return addrs, nil
}

// attachments reads what a GC must keep, as a set of model.Workload keys. Spec 1.1.0 names the key in
// two ways; runtimes send either or both.
func (c *conf) attachments() (map[string]bool, *Error) {
	for _, key := range []string{"cni.dev/valid-attachments", "cni.dev/attachments"} {
		if _, ok := c.raw[key]; !ok {
			continue
		}
		var list []types.GCAttachment
		if err := c.decode(key, &list); err != nil {
			return nil, err
		}
		keep := make(map[string]bool, len(list))
		for i, a := range list {
			w := model.Workload{ContainerID: a.ContainerID, IfName: a.IfName}
			if err := w.Validate(); err != nil {
				return nil, Errorf(CodeInvalidConfig, "network %q: %s[%d]: %v", c.Name, key, i, err)
			}
			keep[w.Key()] = true
		}
		return keep, nil
	}
	return nil, Errorf(CodeInvalidConfig, "network %q: cni.dev/valid-attachments (empty): want the list of attachments to keep", c.Name)
}

// short keeps outside text readable in an error.
func short(s string) string {
	const most = 128
	if len(s) > most {
		s = s[:most] + "…"
	}
	return strings.ToValidUTF8(strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, s), "?")
}
