package oracle

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/heddle-net/heddle/internal/model"
)

// Random makes a world from a number: the same number, the same world. Worlds are small, so that many of
// their parts meet: few names, few labels, networks around the addresses that there are.
func Random(seed uint64) *World {
	g := newGenerator(seed, &World{})
	g.cluster()
	g.objects()
	g.hosts = g.once(3)
	g.policies()
	return g.w
}

// RandomOver makes a world around what runs already: its nodes and workloads are those that are given, what
// is said of them and who may talk to whom comes from the number. There are no host endpoints in it: policies
// for them could cut a real host off from its store.
func RandomOver(seed uint64, nodes []Node, endpoints []model.Endpoint) *World {
	g := newGenerator(seed, (&World{Node: nodes[0].Name, Nodes: nodes, Endpoints: endpoints}).Copy())
	g.objects()
	for range 1 + g.n(2) {
		g.policies()
	}
	return g.w
}

// Mutate makes another world from this one: one to three things come, go or change.
func (w *World) Mutate(seed uint64) *World {
	g := newGenerator(seed, w.Copy())
	g.hosts = true
	for range 1 + g.n(3) {
		g.mutate()
	}
	return g.w
}

type generator struct {
	r     *rand.Rand
	w     *World
	hosts bool // whether there are to be host endpoints
}

func newGenerator(seed uint64, w *World) *generator {
	return &generator{r: rand.New(rand.NewPCG(seed, 104)), w: w}
}

// n is a number below the limit.
func (g *generator) n(limit int) int { return g.r.IntN(limit) }

// one in so many times.
func (g *generator) once(in int) bool { return g.n(in) == 0 }

func pick[T any](g *generator, from []T) T { return from[g.n(len(from))] }

func ptr[T any](v T) *T { return &v }

var (
	someNamespaces = []string{"dev", "prod", "test", "kube-system"}
	somePods       = []string{"pod1", "pod2", "pod3", "web-0", "web-1", "db", "api"}
	someAccounts   = []string{"default", "robot", "admin"}
	someServices   = []string{"web", "dns"}
	someKeys       = []string{"app", "app", "role", "role", "example.com/zone", "env"}
	someValues     = []string{"web", "web", "db", "db", "webdb", "", "a.b_c-d"}
	somePortNames  = []string{"http", "dns", "metrics"}
	somePorts      = []uint16{1, 53, 80, 81, 443, 8080, 8081, 32767, 32768, 65534, 65535}
	someNodes      = []string{"n1", "n2", "n3"}
	outside        = addrs("203.0.113.7", "8.8.8.8", "255.255.255.255", "127.255.255.255", "2001:db8::7", "8000::")
)

func addrs(texts ...string) []netip.Addr {
	all := make([]netip.Addr, len(texts))
	for i, t := range texts {
		all[i] = netip.MustParseAddr(t)
	}
	return all
}

// cluster makes nodes and workloads.
func (g *generator) cluster() {
	g.w.Node = "n1"
	for i, name := range someNodes[:1+g.n(3)] {
		n := Node{Name: name, Addresses: addrs(fmt.Sprintf("192.168.1.%d", i+1), fmt.Sprintf("fd00:1::%d", i+1))}
		if g.once(3) {
			n.Addresses = append(n.Addresses, addrs(fmt.Sprintf("10.244.%d.1", i+1), fmt.Sprintf("fd00:244::%d:1", i+1))...)
		}
		if g.once(8) {
			n.Addresses = n.Addresses[:1]
		}
		n.Links = map[string][]netip.Addr{"eth0": n.Addresses[:1], "eth1": n.Addresses[1:]}
		g.w.Nodes = append(g.w.Nodes, n)
	}
	for range 2 + g.n(8) {
		g.endpoint()
	}
}

// objects are what is said of workloads.
func (g *generator) objects() {
	for range 1 + g.n(4) {
		g.namespace()
	}
	for range g.n(8) {
		g.pod()
	}
	for range g.n(4) {
		g.account()
	}
	for range g.n(4) {
		g.slice()
	}
}

// put adds an object, in place of the one of the same kind, namespace and name.
func put[T any](list *[]T, o T, same func(a, b *T) bool) {
	*list = slices.DeleteFunc(*list, func(a T) bool { return same(&a, &o) })
	*list = append(*list, o)
}

// drop takes one object away.
func drop[T any](g *generator, list *[]T) {
	if len(*list) > 0 {
		i := g.n(len(*list))
		*list = slices.Delete(*list, i, i+1)
	}
}

func (g *generator) labels() map[string]string {
	labels := map[string]string{}
	for range g.n(4) {
		labels[pick(g, someKeys)] = pick(g, someValues)
	}
	return labels
}

func (g *generator) namespace() {
	put(&g.w.Namespaces, corev1.Namespace{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"},
		ObjectMeta: metav1.ObjectMeta{Name: g.usedNamespace(), Labels: g.labels()},
	}, func(a, b *corev1.Namespace) bool { return a.Name == b.Name })
}

// account is most often one under which some pod runs.
func (g *generator) account() {
	a := corev1.ServiceAccount{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ServiceAccount"},
		ObjectMeta: metav1.ObjectMeta{Namespace: pick(g, someNamespaces), Name: pick(g, someAccounts), Labels: g.labels()},
	}
	if len(g.w.Pods) > 0 && !g.once(4) {
		if p := pick(g, g.w.Pods); p.Spec.ServiceAccountName != "" {
			a.Namespace, a.Name = p.Namespace, p.Spec.ServiceAccountName
		}
	}
	put(&g.w.ServiceAccounts, a, func(a, b *corev1.ServiceAccount) bool { return a.Namespace == b.Namespace && a.Name == b.Name })
}

// endpoint adds a workload with an address that no other has, most often on the own node.
func (g *generator) endpoint() {
	node := 0
	if g.once(2) {
		node = g.n(len(g.w.Nodes))
	}
	for range 20 {
		k := 2 + g.n(14)
		e := model.Endpoint{
			Node: g.w.Nodes[node].Name, Link: fmt.Sprintf("veth%d", k),
			Namespace: pick(g, someNamespaces), Name: pick(g, somePods), Labels: g.labels(),
			Addresses: addrs(fmt.Sprintf("10.244.%d.%d", node+1, k), fmt.Sprintf("fd00:244::%d:%x", node+1, k)),
		}
		if g.once(3) {
			e.Labels = nil // only its Pod has labels
		}
		if g.once(12) {
			e.Namespace = "" // a workload of no namespace
		}
		switch g.n(8) {
		case 0:
			e.Addresses = e.Addresses[:1]
		case 1:
			e.Addresses = e.Addresses[1:]
		case 2:
			e.Addresses = append(e.Addresses, netip.MustParseAddr(fmt.Sprintf("10.99.%d.%d", node+1, k)))
		}
		if len(g.w.Endpoints) > 0 && g.once(12) {
			e.Addresses = slices.Clone(pick(g, g.w.Endpoints).Addresses) // one that goes, one that comes
		}
		twice := g.once(10) // a second interface of the same pod
		known := func(other model.Endpoint) bool {
			return other.Key() == e.Key() || other.Namespace == e.Namespace && other.Name == e.Name && !twice
		}
		if !slices.ContainsFunc(g.w.Endpoints, known) {
			g.w.Endpoints = append(g.w.Endpoints, e)
			return
		}
	}
}

// pod says something of a workload that there is, or, now and then, of one that is not there.
func (g *generator) pod() {
	p := corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Namespace: pick(g, someNamespaces), Name: pick(g, somePods), Labels: g.labels()},
	}
	if len(g.w.Endpoints) > 0 && !g.once(6) {
		if e := pick(g, g.w.Endpoints); e.Namespace != "" {
			p.Namespace, p.Name = e.Namespace, e.Name
		}
	} else {
		p.Spec.HostNetwork = g.once(2)
	}
	if !g.once(3) {
		p.Spec.ServiceAccountName = pick(g, someAccounts)
	}
	for i := range 1 + g.n(2) {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{Name: fmt.Sprintf("c%d", i), Image: "scratch", Ports: g.containerPorts()})
	}
	if g.once(4) {
		init := corev1.Container{Name: "init", Image: "scratch", Ports: g.containerPorts()}
		if g.once(2) {
			init.RestartPolicy = ptr(corev1.ContainerRestartPolicyAlways)
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, init)
	}
	put(&g.w.Pods, p, func(a, b *corev1.Pod) bool { return a.Namespace == b.Namespace && a.Name == b.Name })
}

func (g *generator) containerPorts() []corev1.ContainerPort {
	var ports []corev1.ContainerPort
	for range g.n(4) {
		p := corev1.ContainerPort{ContainerPort: int32(pick(g, somePorts))}
		if !g.once(5) {
			p.Name = pick(g, somePortNames)
		}
		if !g.once(2) {
			p.Protocol = g.kubeProtocol()
		}
		ports = append(ports, p)
	}
	return ports
}

func (g *generator) kubeProtocol() corev1.Protocol {
	return pick(g, []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP})
}

// slice says where a service leads: mostly to workloads.
func (g *generator) slice() {
	s := discoveryv1.EndpointSlice{
		TypeMeta:    metav1.TypeMeta{APIVersion: "discovery.k8s.io/v1", Kind: "EndpointSlice"},
		ObjectMeta:  metav1.ObjectMeta{Namespace: pick(g, someNamespaces), Name: fmt.Sprintf("slice-%d", g.n(4))},
		AddressType: discoveryv1.AddressTypeIPv4,
	}
	s.Labels = map[string]string{"kubernetes.io/service-name": pick(g, someServices)}
	if g.once(2) {
		s.AddressType = discoveryv1.AddressTypeIPv6
	}
	for range g.n(6) {
		a := g.addr()
		if a.Is4() == (s.AddressType == discoveryv1.AddressTypeIPv4) {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{a.String()}})
		}
	}
	for i := range g.n(3) {
		p := discoveryv1.EndpointPort{Name: ptr(fmt.Sprintf("p%d", i)), Port: ptr(int32(pick(g, somePorts)))}
		if !g.once(3) {
			p.Protocol = ptr(g.kubeProtocol())
		}
		s.Ports = append(s.Ports, p)
	}
	put(&g.w.EndpointSlices, s, func(a, b *discoveryv1.EndpointSlice) bool { return a.Namespace == b.Namespace && a.Name == b.Name })
}

// addr is an address that means something here.
func (g *generator) addr() netip.Addr {
	switch {
	case len(g.w.Endpoints) > 0 && !g.once(3):
		return pick(g, pick(g, g.w.Endpoints).Addresses)
	case g.once(2):
		return pick(g, pick(g, g.w.Nodes).Addresses)
	}
	return pick(g, outside)
}

// net is a network around an address that means something here, of any size.
func (g *generator) net() netip.Prefix {
	a := g.addr()
	bits := pick(g, []int{32, 32, 32, 31, 30, 29, 28, 25, 24, 24, 16, 8, 1, 0})
	if a.Is6() {
		bits = pick(g, []int{128, 128, 128, 127, 126, 125, 124, 121, 112, 64, 48, 3, 1, 0})
	}
	return netip.PrefixFrom(a, bits).Masked()
}

// within is a network smaller than n; false when there is none.
func (g *generator) within(n netip.Prefix) (netip.Prefix, bool) {
	for range 10 {
		if inner := g.net(); inner.Bits() > n.Bits() && n.Contains(inner.Addr()) && inner.Addr().Is4() == n.Addr().Is4() {
			return inner, true
		}
	}
	if n.IsSingleIP() {
		return n, false
	}
	return netip.PrefixFrom(n.Addr(), n.Bits()+1), true
}
