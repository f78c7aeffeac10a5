package kube

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"github.com/heddle-net/heddle/internal/policy"
)

// maxSliceEndpoints bounds what one EndpointSlice comes to: its addresses times its ports.
const maxSliceEndpoints = 100_000

// IP protocol numbers of the protocols that Kubernetes' policies know.
const (
	tcp  = 6
	udp  = 17
	sctp = 132
)

// namespace carries the label that Kubernetes gives to every namespace.
func namespace(n *corev1.Namespace) *policy.Namespace {
	labels := n.Labels
	if labels == nil {
		labels = map[string]string{}
	}
	labels[corev1.LabelMetadataName] = n.Name
	return &policy.Namespace{Name: n.Name, Labels: labels}
}

// protocol reads one; none is TCP.
func protocol(a at, p *corev1.Protocol) (uint8, error) {
	if p == nil {
		return tcp, nil
	}
	switch *p {
	case corev1.ProtocolTCP:
		return tcp, nil
	case corev1.ProtocolUDP:
		return udp, nil
	case corev1.ProtocolSCTP:
		return sctp, nil
	}
	return 0, a.bad(*p, "TCP, UDP or SCTP")
}

// endpointSlice takes every endpoint, ready or not: a connection to one that is about to end goes on. Addresses
// that are names of hosts do not count. Where a port has no number, or the slice no ports, there is an entry with
// protocol and port 0, which no packet has: a source is found by its address alone.
func endpointSlice(a at, s *discoveryv1.EndpointSlice) (*policy.EndpointSlice, error) {
	out := &policy.EndpointSlice{Service: policy.ServiceRef{Namespace: s.Namespace, Name: s.Labels[discoveryv1.LabelServiceName]}}
	switch s.AddressType {
	case discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6:
	case discoveryv1.AddressTypeFQDN:
		return out, nil
	default:
		return nil, a.field("addressType").bad(s.AddressType, "IPv4, IPv6 or FQDN")
	}
	ports, err := slicePorts(a.field("ports"), s.Ports)
	if err != nil {
		return nil, err
	}
	addrs := 0
	for _, e := range s.Endpoints {
		addrs += len(e.Addresses)
	}
	if total := addrs * len(ports); total > maxSliceEndpoints {
		return nil, a.field("endpoints").bad(total, fmt.Sprintf("addresses times ports at most %d", maxSliceEndpoints))
	}
	for i, e := range s.Endpoints {
		for j, text := range e.Addresses {
			addr, err := netip.ParseAddr(text)
			if err != nil || addr.Zone() != "" || addr.Is4In6() || addr.Is4() != (s.AddressType == discoveryv1.AddressTypeIPv4) {
				return nil, a.field("endpoints").item(i).field("addresses").item(j).bad(text, fmt.Sprintf("an %s address", s.AddressType))
			}
			for _, p := range ports {
				p.Addr = addr
				out.Endpoints = append(out.Endpoints, p)
			}
		}
	}
	return out, nil
}

// slicePorts are protocols and ports without addresses: at least one, each once.
func slicePorts(a at, ports []discoveryv1.EndpointPort) ([]policy.ServiceEndpoint, error) {
	var out []policy.ServiceEndpoint
	for i, p := range ports {
		a := a.item(i)
		var one policy.ServiceEndpoint
		if p.Port != nil {
			var err error
			if one.Port, err = portNumber(a.field("port"), *p.Port); err != nil {
				return nil, err
			}
			if one.Protocol, err = protocol(a.field("protocol"), p.Protocol); err != nil {
				return nil, err
			}
		}
		out = append(out, one)
	}
	if len(out) == 0 {
		return []policy.ServiceEndpoint{{}}, nil
	}
	slices.SortFunc(out, func(a, b policy.ServiceEndpoint) int {
		return (int(a.Protocol)-int(b.Protocol))<<16 + int(a.Port) - int(b.Port)
	})
	return slices.Compact(out), nil
}
