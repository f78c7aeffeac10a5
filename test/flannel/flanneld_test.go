package flannel

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"sync"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/heddle-net/heddle/test/harness"
)

// flanneld is a host as flanneld 0.28 and its CNI chain leave it (backend vxlan or host-gw), made with
// `ip` and `bridge` alone. follow does what its subnet manager does with what others write.
type flanneld struct {
	n       *network
	ns      string
	backend string
	addr    [2]netip.Addr   // IPv4, IPv6 (zero: not dual stack)
	subnet  [2]netip.Prefix // as addr
	mac     [2]string       // of flannel.1 and flannel-v6.1
	lease   clientv3.LeaseID
}

// vtepNames are the VXLAN devices by the family of the outer headers.
var vtepNames = [2]string{"flannel.1", "flannel-v6.1"}

// wireLease is what flanneld writes; the test has its own, so that an error of Heddle's shows.
type wireLease struct {
	PublicIP      string
	PublicIPv6    *string
	BackendType   string    `json:",omitempty"`
	BackendData   *wireVTEP `json:",omitempty"`
	BackendV6Data *wireVTEP `json:",omitempty"`
}

type wireVTEP struct {
	VNI     int
	VtepMAC string
}

// families are those that the host has.
func (f *flanneld) families() []int {
	if f.addr[1].IsValid() {
		return []int{0, 1}
	}
	return []int{0}
}

// newFlanneld makes the host's devices and files its lease. number is the host's in the segment and
// that of its subnet.
func newFlanneld(n *network, backend string, number int, dual bool) *flanneld {
	n.t.Helper()
	f := &flanneld{n: n, backend: backend}
	f.addr[0] = netip.MustParseAddr(fmt.Sprintf("192.168.77.%d", number))
	f.subnet[0] = netip.MustParsePrefix(fmt.Sprintf("10.128.%d.0/24", number))
	own := []netip.Prefix{netip.PrefixFrom(f.addr[0], 24)}
	if dual {
		f.addr[1] = netip.MustParseAddr(fmt.Sprintf("fd00:77::%d", number))
		f.subnet[1] = netip.MustParsePrefix(fmt.Sprintf("fd00:128:0:%d::/64", number))
		own = append(own, netip.PrefixFrom(f.addr[1], 64))
	}
	f.ns = n.host(own...)
	sysctl(n.t, f.ns, "net/ipv4/ip_forward", "1")
	sysctl(n.t, f.ns, "net/ipv6/conf/all/forwarding", "1")
	mtu := 1500
	if backend == "vxlan" {
		mtu = 1450
		for _, i := range f.families() {
			dev, bits := vtepNames[i], f.addr[i].BitLen()
			ip(n.t, f.ns, fmt.Sprintf("link add %s type vxlan id 1 local %s dev eth0 dstport 8472 nolearning", dev, f.addr[i]))
			addresses(n.t, f.ns, dev, netip.PrefixFrom(f.subnet[i].Addr(), bits))
		}
		f.readMACs()
	}
	ip(n.t, f.ns, "link add cni0 type bridge")
	ip(n.t, f.ns, fmt.Sprintf("link set cni0 mtu %d", mtu))
	addresses(n.t, f.ns, "cni0")
	for _, i := range f.families() {
		addresses(n.t, f.ns, "cni0", netip.PrefixFrom(nth(f.subnet[i], 1), f.subnet[i].Bits()))
	}
	g, err := n.etcd.Grant(n.t.Context(), 3600)
	must(n.t, err)
	f.lease = g.ID
	f.publish()
	return f
}

func (f *flanneld) readMACs() {
	for _, i := range f.families() {
		var links []struct{ Address string }
		must(f.n.t, json.Unmarshal([]byte(ip(f.n.t, f.ns, "-json link show "+vtepNames[i])), &links))
		f.mac[i] = links[0].Address
	}
}

// nth is the address of that number in a prefix, counted from its base.
func nth(p netip.Prefix, number int) netip.Addr {
	a := p.Addr()
	for range number {
		a = a.Next()
	}
	return a
}

func (f *flanneld) key() string {
	key := dashed(f.subnet[0])
	if f.subnet[1].IsValid() {
		key += "&" + dashed(f.subnet[1])
	}
	return prefix + "/subnets/" + key
}

func dashed(p netip.Prefix) string { return strings.ReplaceAll(p.String(), "/", "-") }

// publish writes the lease, with its time to live.
func (f *flanneld) publish() {
	f.n.t.Helper()
	w := wireLease{PublicIP: f.addr[0].String(), BackendType: f.backend}
	if f.backend == "vxlan" {
		w.BackendData = &wireVTEP{1, f.mac[0]}
	}
	if f.addr[1].IsValid() {
		s := f.addr[1].String()
		w.PublicIPv6 = &s
		if f.backend == "vxlan" {
			w.BackendV6Data = &wireVTEP{1, f.mac[1]}
		}
	}
	value, err := json.Marshal(w)
	must(f.n.t, err)
	_, err = f.n.etcd.Put(f.n.t.Context(), f.key(), string(value), clientv3.WithLease(f.lease))
	must(f.n.t, err)
}

// pod puts a pod behind cni0, as the bridge plugin does, with the number as its address in the subnet.
func (f *flanneld) pod(number int) (ns string, addrs []netip.Addr) {
	f.n.t.Helper()
	ns = harness.Netns(f.n.t)
	port := harness.Name("v")
	ip(f.n.t, f.ns, "link add "+port+" type veth peer name eth0 netns "+ns)
	ip(f.n.t, f.ns, "link set "+port+" master cni0 up")
	ip(f.n.t, f.ns, "link set "+port+" type bridge_slave hairpin on")
	for _, i := range f.families() {
		a := nth(f.subnet[i], number)
		addrs = append(addrs, a)
		addresses(f.n.t, ns, "eth0", netip.PrefixFrom(a, f.subnet[i].Bits()))
		ip(f.n.t, ns, fmt.Sprintf("route add default via %s", nth(f.subnet[i], 1)))
	}
	return ns, addrs
}

// follow does with every lease but the own what flanneld does, until the test ends or stop is called.
func (f *flanneld) follow() (stop func()) {
	f.n.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	resp, err := f.n.etcd.Get(ctx, prefix+"/subnets/", clientv3.WithPrefix())
	must(f.n.t, err)
	known := map[string]string{}
	var running sync.WaitGroup
	watch := f.n.etcd.Watch(ctx, prefix+"/subnets/", clientv3.WithPrefix(), clientv3.WithRev(resp.Header.Revision+1))
	running.Go(func() {
		for _, kv := range resp.Kvs {
			f.take(known, string(kv.Key), string(kv.Value))
		}
		for w := range watch {
			for _, e := range w.Events {
				f.take(known, string(e.Kv.Key), string(e.Kv.Value))
			}
		}
	})
	stop = sync.OnceFunc(func() { cancel(); running.Wait() })
	f.n.t.Cleanup(stop)
	return stop
}

// take is flanneld's answer to one event; an empty value is a deletion.
func (f *flanneld) take(known map[string]string, key, value string) {
	if key == f.key() {
		return
	}
	verb := "replace"
	if value == "" {
		verb, value = "del", known[key]
		delete(known, key)
	} else {
		known[key] = value
	}
	var w wireLease
	if err := json.Unmarshal([]byte(value), &w); err != nil {
		f.n.t.Errorf("flanneld cannot read the lease %s %q: %v", key, value, err)
		return
	}
	blocks := strings.Split(strings.TrimPrefix(key, prefix+"/subnets/"), "&")
	for i, block := range blocks {
		i4 := strings.LastIndex(block, "-")
		subnet, err := netip.ParsePrefix(block[:i4] + "/" + block[i4+1:])
		if err != nil {
			f.n.t.Errorf("flanneld cannot read the key %s: %v", key, err)
			return
		}
		public, vtep := w.PublicIP, w.BackendData
		if i == 1 {
			public, vtep = "", w.BackendV6Data
			if w.PublicIPv6 != nil {
				public = *w.PublicIPv6
			}
		}
		f.reach(verb, i, subnet, public, w.BackendType, vtep)
	}
}

// reach makes or removes the way to one subnet.
func (f *flanneld) reach(verb string, family int, subnet netip.Prefix, public, backend string, vtep *wireVTEP) {
	if backend != f.backend { // as flanneld: "ignoring non-vxlan subnet"
		f.n.t.Errorf("flanneld ignores %s of backend %q", subnet, backend)
		return
	}
	if backend == "host-gw" {
		f.do("ip", "-n", f.ns, "route", verb, subnet.String(), "via", public, "dev", "eth0")
		return
	}
	if vtep == nil {
		f.n.t.Errorf("flanneld cannot use the lease of %s, which has no VtepMAC", subnet)
		return
	}
	dev, base := vtepNames[family], subnet.Addr().String()
	if verb == "replace" {
		f.do("ip", "-n", f.ns, "neigh", verb, base, "lladdr", vtep.VtepMAC, "dev", dev, "nud", "permanent")
		f.do("bridge", "-n", f.ns, "fdb", verb, vtep.VtepMAC, "dev", dev, "dst", public, "self", "permanent")
		f.do("ip", "-n", f.ns, "route", verb, subnet.String(), "via", base, "dev", dev, "onlink")
		return
	}
	f.do("ip", "-n", f.ns, "route", verb, subnet.String(), "via", base, "dev", dev, "onlink")
	f.do("ip", "-n", f.ns, "neigh", verb, base, "dev", dev)
	f.do("bridge", "-n", f.ns, "fdb", verb, vtep.VtepMAC, "dev", dev, "dst", public, "self")
}

func (f *flanneld) do(name string, args ...string) {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		f.n.t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// leave ends the lease, as its expiry does.
func (f *flanneld) leave(t *testing.T) {
	t.Helper()
	_, err := f.n.etcd.Revoke(t.Context(), f.lease)
	must(t, err)
}
