package oracle

import (
	"maps"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/heddle-net/heddle/internal/model"
)

// thing is what can stand at an end of a packet and be selected: a workload, a network set or a host
// endpoint, with the labels that Calico's documents give it.
type thing struct {
	kind      string // "workload", "set", "host"
	endpoint  *model.Endpoint
	host      *CalicoHostEndpoint
	namespace string            // empty: in none
	own       map[string]string // labels that people gave it
	labels    map[string]string // and those that Calico adds
	account   string            // service account
	ports     []namedPort
	nets      []netip.Prefix
}

type namedPort struct {
	name     string
	protocol uint8
	port     uint16
}

// at says whether the thing has the address.
func (t *thing) at(addr netip.Addr) bool {
	for _, n := range t.nets {
		if n.Contains(addr) {
			return true
		}
	}
	return false
}

// calls says whether the thing has a port of the name with the protocol and number.
func (t *thing) calls(name string, protocol uint8, port uint16) bool {
	for _, p := range t.ports {
		if p.name == name && p.protocol == protocol && p.port == port {
			return true
		}
	}
	return false
}

// things are all that can be selected.
func (w *World) things() []*thing {
	var all []*thing
	for i := range w.Endpoints {
		all = append(all, w.workload(&w.Endpoints[i]))
	}
	for i := range w.NetworkSets {
		s := &w.NetworkSets[i]
		t := &thing{kind: "set", namespace: s.Namespace, own: s.Labels}
		for _, text := range s.Spec.Nets {
			t.nets = append(t.nets, netOf(text))
		}
		all = append(all, t)
	}
	for i := range w.HostEndpoints {
		h := &w.HostEndpoints[i]
		t := &thing{kind: "host", host: h, own: h.Labels}
		for _, text := range h.Spec.ExpectedIPs {
			t.nets = append(t.nets, netOf(text))
		}
		for _, p := range h.Spec.Ports {
			t.ports = append(t.ports, namedPort{p.Name, calicoProtocol(p.Protocol), p.Port})
		}
		all = append(all, t)
	}
	for _, t := range all {
		t.labels = map[string]string{}
		for k, v := range t.own {
			if !strings.HasPrefix(k, "pcns.") && !strings.HasPrefix(k, "pcsa.") {
				t.labels[k] = v
			}
		}
		if t.kind == "workload" {
			t.labels["projectcalico.org/orchestrator"] = "k8s"
		}
		if t.account != "" {
			t.labels["projectcalico.org/serviceaccount"] = t.account
			for k, v := range w.accountLabels(t.namespace, t.account) {
				t.labels["pcsa."+k] = v
			}
		}
		if t.namespace != "" {
			t.labels["projectcalico.org/namespace"] = t.namespace
			for k, v := range w.namespaceLabels(t.namespace) {
				t.labels["pcns."+k] = v
			}
		}
	}
	return all
}

// workload puts together what runs and what the Pod of its name says of it.
func (w *World) workload(e *model.Endpoint) *thing {
	t := &thing{kind: "workload", endpoint: e, namespace: e.Namespace, own: maps.Clone(e.Labels)}
	if t.own == nil {
		t.own = map[string]string{}
	}
	for _, a := range e.Addresses {
		t.nets = append(t.nets, netip.PrefixFrom(a, a.BitLen()))
	}
	for i := range w.Pods {
		p := &w.Pods[i]
		if p.Namespace != e.Namespace || p.Name != e.Name || p.Spec.HostNetwork {
			continue // one on the host's network is the node, and no workload
		}
		maps.Copy(t.own, p.Labels)
		t.account = p.Spec.ServiceAccountName
		for _, c := range p.Spec.InitContainers {
			// Only those that go on running are sidecars; the others are over before the pod is ready.
			if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
				t.addPorts(c.Ports)
			}
		}
		for _, c := range p.Spec.Containers {
			t.addPorts(c.Ports)
		}
	}
	return t
}

func (t *thing) addPorts(ports []corev1.ContainerPort) {
	for _, p := range ports {
		if p.Name != "" {
			t.ports = append(t.ports, namedPort{p.Name, kubeProtocol(p.Protocol), uint16(p.ContainerPort)})
		}
	}
}

// namespaceLabels are a namespace's own labels, and its name as Kubernetes writes it among them.
func (w *World) namespaceLabels(name string) map[string]string {
	labels := map[string]string{}
	for i := range w.Namespaces {
		if w.Namespaces[i].Name == name {
			maps.Copy(labels, w.Namespaces[i].Labels)
		}
	}
	labels["kubernetes.io/metadata.name"] = name
	return labels
}

func (w *World) accountLabels(namespace, name string) map[string]string {
	for i := range w.ServiceAccounts {
		if a := &w.ServiceAccounts[i]; a.Namespace == namespace && a.Name == name {
			return a.Labels
		}
	}
	return nil
}

// serves says whether the address is behind the service, with protocol and port when they are given.
func (w *World) serves(namespace, service string, addr netip.Addr, l4 *packet) bool {
	for i := range w.EndpointSlices {
		s := &w.EndpointSlices[i]
		if s.Namespace != namespace || s.Labels["kubernetes.io/service-name"] != service {
			continue
		}
		for _, e := range s.Endpoints {
			if !slices.Contains(e.Addresses, addr.String()) {
				continue
			}
			if l4 == nil {
				return true
			}
			for _, p := range s.Ports {
				protocol := corev1.ProtocolTCP
				if p.Protocol != nil {
					protocol = *p.Protocol
				}
				if kubeProtocol(protocol) == l4.protocol && p.Port != nil && uint16(*p.Port) == l4.dport {
					return true
				}
			}
		}
	}
	return false
}

// netOf reads a network or a single address.
func netOf(text string) netip.Prefix {
	if a, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(a, a.BitLen())
	}
	return netip.MustParsePrefix(text).Masked()
}
