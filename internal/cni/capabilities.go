package cni

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/heddle-net/heddle/internal/model"
)

// Capabilities that the plugin has, of the CNI conventions ("Dynamic Plugin specific Fields"): a runtime fills
// runtimeConfig with what these say of the workload.
const (
	capabilityPorts     = "portMappings"
	capabilityBandwidth = "bandwidth"
)

var capabilityNames = []string{capabilityPorts, capabilityBandwidth, capabilityIPs, capabilityMAC}

// Bounds of what a runtime may ask for.
const (
	maxHostPorts = 4096
	// minRate and maxRate are in bits per second, as Kubernetes has them for its annotations.
	minRate = 1000
	maxRate = 1_000_000_000_000_000
	// maxBurst is in bits: the kernel counts the bytes in 32 bits.
	maxBurst = 8 * (1<<32 - 1)
)

// parseRuntimeConfig reads the capabilities, and names the first other thing that is asked for.
func (c *conf) parseRuntimeConfig(fields map[string]json.RawMessage, names []string) *Error {
	for _, name := range names {
		raw := fields[name]
		if empty(raw) {
			continue
		}
		var err *Error
		switch name {
		case capabilityPorts:
			c.HostPorts, err = c.parsePorts(raw)
		case capabilityBandwidth:
			c.Bandwidth, err = c.parseBandwidth(raw)
		case capabilityIPs:
			c.RuntimeIPs, err = c.parseIPs("runtimeConfig."+capabilityIPs, raw)
		case capabilityMAC:
			c.MAC, err = c.parseRuntimeMAC(raw)
		default:
			err = c.unsupported("runtimeConfig."+name, raw, "it to be absent: heddle has no such capability")
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *conf) badRuntimeConfig(field, value, want string) *Error {
	return Errorf(CodeInvalidConfig, "%v", &model.FieldError{
		Noun: fmt.Sprintf("network %q", c.Name), Field: "runtimeConfig." + field, Value: short(value), Want: want,
	})
}

// parsePorts reads [{"hostPort":8080,"containerPort":80,"protocol":"tcp","hostIP":""}]. The list comes back sorted.
func (c *conf) parsePorts(raw json.RawMessage) ([]model.HostPort, *Error) {
	var list []json.RawMessage
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, Errorf(CodeDecode, "network configuration: runtimeConfig.%s: %s", capabilityPorts, jsonReason(err))
	}
	if len(list) > maxHostPorts {
		return nil, c.badRuntimeConfig(capabilityPorts, strconv.Itoa(len(list)), fmt.Sprintf("at most %d ports", maxHostPorts))
	}
	ports := make([]model.HostPort, 0, len(list))
	for i, one := range list {
		at := fmt.Sprintf("%s[%d]", capabilityPorts, i)
		p, err := c.parsePort(at, one)
		if err != nil {
			return nil, err
		}
		for _, q := range ports {
			if p.Collides(q) && p != q {
				return nil, c.badRuntimeConfig(at, string(one), "every port of the node once")
			}
		}
		ports = append(ports, p)
	}
	slices.SortFunc(ports, model.HostPort.Compare)
	return slices.Compact(ports), nil
}

func (c *conf) parsePort(at string, raw json.RawMessage) (p model.HostPort, failed *Error) {
	var m struct{ HostPort, ContainerPort, Protocol, HostIP json.RawMessage }
	if !strict(raw, &m) {
		return p, c.badRuntimeConfig(at, string(raw), `{"hostPort":…,"containerPort":…,"protocol":"…","hostIP":"…"}`)
	}
	for _, f := range []struct {
		name string
		raw  json.RawMessage
		to   *uint16
	}{{"hostPort", m.HostPort, &p.HostPort}, {"containerPort", m.ContainerPort, &p.ContainerPort}} {
		n, err := strconv.ParseUint(string(f.raw), 10, 16)
		if err != nil || n == 0 {
			return p, c.badRuntimeConfig(at+"."+f.name, string(f.raw), "a port, 1..65535")
		}
		*f.to = uint16(n)
	}
	if json.Unmarshal(m.Protocol, &p.Protocol) == nil {
		p.Protocol = strings.ToLower(p.Protocol)
	}
	if !slices.Contains(model.HostPortProtocols, p.Protocol) {
		return p, c.badRuntimeConfig(at+".protocol", string(m.Protocol), "one of "+strings.Join(model.HostPortProtocols, ", "))
	}
	var ip string
	if m.HostIP == nil || json.Unmarshal(m.HostIP, &ip) == nil && ip == "" {
		return p, nil
	}
	addr, err := netip.ParseAddr(ip)
	if addr = addr.Unmap(); err != nil || addr.Zone() != "" || addr.IsMulticast() {
		return p, c.badRuntimeConfig(at+".hostIP", string(m.HostIP), "an address of the node, or nothing for all")
	}
	p.HostIP = addr
	return p, nil
}

// parseBandwidth reads {"ingressRate":…,"ingressBurst":…,"egressRate":…,"egressBurst":…}; nil when nothing is limited.
func (c *conf) parseBandwidth(raw json.RawMessage) (*model.Bandwidth, *Error) {
	var m struct{ IngressRate, IngressBurst, EgressRate, EgressBurst json.RawMessage }
	if !strict(raw, &m) {
		return nil, c.badRuntimeConfig(capabilityBandwidth, string(raw), `{"ingressRate":…,"ingressBurst":…,"egressRate":…,"egressBurst":…}`)
	}
	b := &model.Bandwidth{}
	for _, d := range []struct {
		name        string
		rate, burst json.RawMessage
		toRate      *uint64
		toBurst     *uint64
	}{
		{"ingress", m.IngressRate, m.IngressBurst, &b.IngressRate, &b.IngressBurst},
		{"egress", m.EgressRate, m.EgressBurst, &b.EgressRate, &b.EgressBurst},
	} {
		rate, ok := number(d.rate)
		if !ok || rate != 0 && (rate < minRate || rate > maxRate) {
			return nil, c.badRuntimeConfig(capabilityBandwidth+"."+d.name+"Rate", string(d.rate), fmt.Sprintf("%d..%d bits per second, or 0 for no limit", minRate, maxRate))
		}
		burst, ok := number(d.burst)
		if !ok || burst > maxBurst {
			return nil, c.badRuntimeConfig(capabilityBandwidth+"."+d.name+"Burst", string(d.burst), fmt.Sprintf("at most %d bits", uint64(maxBurst)))
		}
		if rate == 0 && burst != 0 {
			return nil, c.badRuntimeConfig(capabilityBandwidth+"."+d.name+"Burst", string(d.burst), "a rate beside it")
		}
		*d.toRate, *d.toBurst = rate, burst
	}
	if *b == (model.Bandwidth{}) {
		return nil, nil
	}
	return b, nil
}

// number reads a whole number; an absent one is 0.
func number(raw json.RawMessage) (uint64, bool) {
	if raw == nil {
		return 0, true
	}
	n, err := strconv.ParseUint(string(raw), 10, 64)
	return n, err == nil
}

// strict decodes an object that has no other fields than to's.
func strict(raw json.RawMessage, to any) bool {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	return d.Decode(to) == nil
}
