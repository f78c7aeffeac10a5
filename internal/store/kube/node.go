package kube

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// Annotations of a Node object that are ours.
const (
	// NodeAnnotation is the JSON of model.Node.
	NodeAnnotation = "heddle.net/node"
	// WrittenAnnotation is when that was written, RFC 3339 with nanoseconds. It makes every write one: the API
	// server leaves out those that change nothing, and the order of writes is what paths are changed by.
	WrittenAnnotation = "heddle.net/written"
)

// Annotations by which people tell Calico of a node's place in BGP.
const (
	asnAnnotation     = "projectcalico.org/ASNumber"
	clusterAnnotation = "projectcalico.org/RouteReflectorClusterID"
)

const (
	// maxNode bounds what is read of NodeAnnotation.
	maxNode = 32 << 10
	// maxRanges is how many podCIDRs of a node are read: Kubernetes gives one of each family.
	maxRanges = 8
	maxAddrs  = 32
)

// said is what annotations say of how a node is reached: all that Put writes and compares.
type said struct {
	node, written                                       string
	manager, backend, data, data6, publicIP, publicIPv6 string
}

// fields of said by the annotation's key.
func (a *said) fields() map[string]*string {
	return map[string]*string{
		NodeAnnotation: &a.node, WrittenAnnotation: &a.written,
		flannel.SubnetManagerAnnotation: &a.manager, flannel.BackendTypeAnnotation: &a.backend,
		flannel.BackendDataAnnotation: &a.data, flannel.BackendV6DataAnnotation: &a.data6,
		flannel.PublicIPAnnotation: &a.publicIP, flannel.PublicIPv6Annotation: &a.publicIPv6,
	}
}

func saidOf(annotations map[string]string) said {
	var a said
	for key, to := range a.fields() {
		if v := annotations[key]; len(v) <= maxNode {
			*to = v
		} else {
			*to = strings.Clone(v[:maxNode+1]) // what is too long stays too long
		}
	}
	return a
}

// flannel are the annotations of it that are Flannel's.
func (a *said) flannel() map[string]string {
	m := map[string]string{}
	for key, v := range a.fields() {
		if key != NodeAnnotation && key != WrittenAnnotation {
			m[key] = *v
		}
	}
	return m
}

// nodeFacts is what is kept of a Node object.
type nodeFacts struct {
	version string
	said    said
	ranges  []netip.Prefix // spec.podCIDRs
	addrs   []netip.Addr   // InternalIP
	// labels, asn and cluster are what selectors and BGP see of the node: its labels, and Calico's annotations.
	labels  map[string]string
	asn     uint32
	cluster netip.Addr
	// unavailable is status and reason of the condition NetworkUnavailable, "False/HeddleIsUp"; empty for none.
	unavailable string
}

// reduceNode keeps of a Node object what is of interest.
func reduceNode(o runtime.Object) *thin {
	n, ok := o.(*corev1.Node)
	if !ok {
		return &thin{}
	}
	f := &nodeFacts{version: n.ResourceVersion, said: saidOf(n.Annotations)}
	ranges := n.Spec.PodCIDRs
	if len(ranges) == 0 && n.Spec.PodCIDR != "" {
		ranges = []string{n.Spec.PodCIDR}
	}
	for _, text := range ranges[:min(len(ranges), maxRanges)] {
		if p, err := netip.ParsePrefix(text); err == nil && p == p.Masked() && !p.Addr().Is4In6() && !slices.Contains(f.ranges, p) {
			f.ranges = append(f.ranges, p)
		}
	}
	for _, a := range n.Status.Addresses[:min(len(n.Status.Addresses), maxAddrs)] {
		if ip, err := netip.ParseAddr(a.Address); a.Type == corev1.NodeInternalIP && err == nil {
			f.addrs = append(f.addrs, ip)
		}
	}
	f.labels = maps.Clone(n.Labels)
	if v, err := strconv.ParseUint(n.Annotations[asnAnnotation], 10, 32); err == nil {
		f.asn = uint32(v)
	}
	if a, err := netip.ParseAddr(n.Annotations[clusterAnnotation]); err == nil && a.Is4() {
		f.cluster = a
	}
	for i := range n.Status.Conditions {
		if c := &n.Status.Conditions[i]; c.Type == corev1.NodeNetworkUnavailable {
			f.unavailable = string(c.Status) + "/" + c.Reason
		}
	}
	return &thin{name: n.Name, version: n.ResourceVersion, node: f}
}

// nodeOf is what annotations say; nil when they are nobody's. A flanneld that took the machine over from Heddle
// leaves our annotation behind: what Flannel's say of the address and the devices is then something else.
func nodeOf(name string, a said) (*model.Node, error) {
	lease, is, err := flannel.ParseAnnotations(a.flannel())
	if a.node == "" {
		if err != nil || !is {
			return nil, err
		}
		return flanneld(name, lease)
	}
	if len(a.node) > maxNode {
		return nil, &model.FieldError{Noun: fmt.Sprintf("node %q", name), Field: NodeAnnotation, Value: fmt.Sprint(len(a.node)), Want: fmt.Sprintf("at most %d bytes", maxNode)}
	}
	o, nerr := store.Decode(model.KindNode, name, []byte(a.node))
	if nerr != nil {
		return nil, nerr
	}
	n := o.(*model.Node)
	if err == nil && is && !agrees(lease, n) {
		return flanneld(name, lease)
	}
	return n, nil
}

// agrees reports whether a lease says of a node what the node says of itself.
func agrees(l flannel.Lease, n *model.Node) bool {
	return (!l.PublicIP.IsValid() || l.PublicIP == n.Public(model.IPv4)) &&
		(!l.PublicIPv6.IsValid() || l.PublicIPv6 == n.Public(model.IPv6)) &&
		(l.VTEP == nil || l.VTEP.MAC == n.VTEP4) && (l.VTEPv6 == nil || l.VTEPv6.MAC == n.VTEP6)
}

// flanneld is the node of a flanneld.
func flanneld(name string, l flannel.Lease) (*model.Node, error) {
	n := &model.Node{Name: name, Address4: l.PublicIP, Address6: l.PublicIPv6, Version: "flanneld"}
	if l.VTEP != nil {
		n.VTEP4 = l.VTEP.MAC
	}
	if l.VTEPv6 != nil {
		n.VTEP6 = l.VTEPv6.MAC
	}
	if n.VTEP4 != "" || n.VTEP6 != "" {
		n.Accepts, n.Sends = []model.Path{model.PathVXLAN}, []model.Path{model.PathVXLAN}
	}
	return n, n.Validate()
}

// lease is what flanneld is told of a node in this network; false while there is nothing to tell.
func lease(n *model.Node, pools map[string]model.Pool) (flannel.Lease, bool) {
	var l flannel.Lease
	for _, p := range pools {
		if p.Family() == model.IPv4 {
			l.PublicIP = n.Public(model.IPv4)
		} else {
			l.PublicIPv6 = n.Public(model.IPv6)
		}
		switch p.Path {
		case model.PathVXLAN:
			l.BackendType = "vxlan"
			switch {
			case p.Family() == model.IPv4 && n.VTEP4 != "":
				l.VTEP = &flannel.VTEP{VNI: p.VXLAN.VNI, MAC: n.VTEP4}
			case p.Family() == model.IPv6 && n.VTEP6 != "":
				l.VTEPv6 = &flannel.VTEP{VNI: p.VXLAN.VNI, MAC: n.VTEP6}
			}
		case model.PathDirect:
			l.BackendType = "host-gw"
		default:
			l.BackendType = "alloc"
		}
	}
	return l, l.PublicIP.IsValid() || l.PublicIPv6.IsValid()
}

// takeNode learns a Node object. What else changes in it, such as the kubelet's status, is no change here.
// mu is held.
func (c *catalog) takeNode(name string, f *nodeFacts) {
	was := c.nodes[name]
	if was == nil {
		was = &nodeFacts{}
	}
	c.nodes[name] = f
	if !slices.Equal(was.ranges, f.ranges) {
		c.reholder(name, was.ranges, f.ranges)
	}
	if was.said != f.said || was.asn != f.asn || was.cluster != f.cluster || !maps.Equal(was.labels, f.labels) {
		n, err := nodeOf(name, f.said)
		switch {
		case err != nil:
			c.log.Warn("what annotations say of a node is left out", "node", name, "reason", err)
			c.drop(model.KindNode, name)
		case n == nil:
			c.drop(model.KindNode, name)
		default:
			f.overlay(n)
			c.set(name, n)
		}
	}
	close(c.arrived)
	c.arrived = make(chan struct{})
}

// overlay gives a node what the Node object says of it beside Heddle's own annotation.
func (f *nodeFacts) overlay(n *model.Node) {
	if len(f.labels) > 0 {
		n.Labels = f.labels
	}
	n.ASN = cmp.Or(f.asn, n.ASN)
	if f.cluster.IsValid() {
		n.ClusterID = f.cluster
	}
}

// dropNode learns that a Node object is gone. mu is held.
func (c *catalog) dropNode(name string) {
	if was := c.nodes[name]; was != nil {
		delete(c.nodes, name)
		c.drop(model.KindNode, name)
		c.reholder(name, was.ranges, nil)
	}
	close(c.arrived)
	c.arrived = make(chan struct{})
}

// NodeAddresses implements store.Placed.
func (c *catalog) NodeAddresses(node string) []netip.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.nodes[node]; f != nil {
		return slices.Clone(f.addrs)
	}
	return nil
}
