package netlink

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/plan"
)

// loopback is the index of lo in every namespace.
const loopback = 1

// Pods implements kernel.Pods.
type Pods struct {
	ns int
	// bucket is the queue that holds a link to a rate: tokenBucket, or in tests one that the kernel lacks.
	bucket string

	mu      sync.Mutex
	idle    []*conn      // sockets of the node's namespace, kept between calls
	bridges map[int]bool // indexes of links that are bridges, as was seen: a link never becomes another kind
}

var _ kernel.Pods = (*Pods)(nil)

// NewPods opens Pods for the node's namespace.
func NewPods(opts Options) (*Pods, error) {
	ns, err := dupNS(opts.NS)
	if err != nil {
		return nil, err
	}
	c, err := dialIn(ns)
	if err != nil {
		closeNS(ns)
		return nil, err
	}
	return &Pods{ns: ns, bucket: tokenBucket, idle: []*conn{c}, bridges: map[int]bool{}}, nil
}

// Close gives the sockets and the handle back. All calls must have returned.
func (p *Pods) Close() {
	for _, c := range p.idle {
		c.close()
	}
	p.idle = nil
	closeNS(p.ns)
}

// take and give lend sockets to calls; there are as many as calls have run at once.
func (p *Pods) take() (*conn, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.idle); n > 0 {
		c := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return c, nil
	}
	return dialIn(p.ns)
}

func (p *Pods) give(c *conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.idle = append(p.idle, c)
}

// Attach implements kernel.Pods. One message makes the veth with its inner end in place; one batch
// each sets up the host and the inner end.
//
// Nearly every message waits for a lock that the whole machine has once (rtnl), and that is long when many containers
// start: so there are as few as can be. For the same reason no end is up for long without the other: the
// kernel would take such a link for dead, and wait for all of its CPUs with the lock held.
func (p *Pods) Attach(ctx context.Context, netns *os.File, pod plan.Pod) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := p.take()
	if err != nil {
		return err
	}
	defer p.give(c)
	host, err := p.makeVeth(c, netns, &pod)
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			return
		}
		if derr := c.do(delLink(host.index)); derr != nil && !isGone(derr) {
			err = fmt.Errorf("%w; and the host end stays: %w", err, derr)
		}
	}()
	if err := p.setHost(c, host, &pod); err != nil {
		return err
	}
	if err := p.setInside(netns, host.parent, &pod); err != nil {
		return err
	}
	if err := p.setHostRoutes(c, host, &pod); err != nil {
		return err
	}
	return awaitCarrier(ctx, c, host)
}

// makeVeth makes both ends and returns the host's. A host end that a forgotten DEL left is replaced.
func (p *Pods) makeVeth(c *conn, netns *os.File, pod *plan.Pod) (*link, error) {
	name := pod.Host.Name
	master := 0
	if pod.Host.Master != "" {
		var err error
		if master, err = p.bridge(c, pod.Host.Master); err != nil {
			return nil, fmt.Errorf("make veth %s: %w", name, err)
		}
		// Packets that came for the address before it had a workload, and so before the policies of this one,
		// wait at the neighbour entry: they end here.
		for _, a := range pod.Addresses {
			if err := c.do(delNeighbor(master, a.Addr())); err != nil && !isGone(err) {
				return nil, fmt.Errorf("forget the neighbour %s on %s: %w", a.Addr(), pod.Host.Master, err)
			}
		}
	}
	req, err := vethRequest(netns, pod, master)
	if err != nil {
		return nil, err
	}
	echo, err := c.made(req)
	if errors.Is(err, unix.EEXIST) {
		if err := removeStale(c, name, pod.IfName); err != nil {
			return nil, err
		}
		echo, err = c.made(req)
	}
	if errors.Is(err, unix.EEXIST) {
		err = fmt.Errorf("interface %s exists already in the network namespace: %w", pod.IfName, err)
	}
	if err != nil {
		return nil, fmt.Errorf("make veth %s: %w", name, err)
	}
	if echo != nil {
		return parseLink(echo)
	}
	host, err := c.link(name)
	if err == nil && host == nil {
		err = fmt.Errorf("link %s: gone as soon as made: %w", name, unix.ENODEV)
	}
	return host, err
}

// bridge finds the index of the node's bridge.
func (p *Pods) bridge(c *conn, name string) (int, error) {
	none := fmt.Errorf("there is no bridge %s on the node", name)
	index, err := c.index(name)
	if errors.Is(err, unix.ENODEV) {
		return 0, none
	}
	if err != nil {
		return 0, err
	}
	p.mu.Lock()
	seen := p.bridges[index]
	p.mu.Unlock()
	if seen {
		return index, nil
	}
	b, err := c.link(name)
	if err != nil {
		return 0, err
	}
	if b == nil || b.kind != string(plan.LinkBridge) {
		return 0, none
	}
	p.mu.Lock()
	p.bridges[b.index] = true
	p.mu.Unlock()
	return b.index, nil
}

// removeStale removes a host end of ours, and says what else stands in the way.
func removeStale(c *conn, name, ifName string) error {
	l, err := c.link(name)
	if err != nil {
		return err
	}
	if l == nil {
		return fmt.Errorf("make veth %s: interface %s exists already in the network namespace: %w", name, ifName, unix.EEXIST)
	}
	if !l.ours() {
		return fmt.Errorf("make veth %s: a link of that name is there that Heddle did not make: %w", name, unix.EEXIST)
	}
	if err := c.do(delLink(l.index)); err != nil && !isGone(err) {
		return fmt.Errorf("remove stale veth %s: %w", name, err)
	}
	return nil
}

// vethRequest asks for the host end: named, marked and in its bridge from the first moment; and the
// inner end in its namespace with its final name, MAC and MTU. One queue each way: more cost memory and
// time to make, and a veth has no hardware that would serve them.
func vethRequest(netns *os.File, pod *plan.Pod, master int) (*nl.NetlinkRequest, error) {
	inner, err := attrMAC(pod.MAC)
	if err != nil {
		return nil, fmt.Errorf("mac of %s: %w", pod.IfName, err)
	}
	outer, err := attrMAC(pod.Host.MAC)
	if err != nil {
		return nil, fmt.Errorf("mac of %s: %w", pod.Host.Name, err)
	}
	data := nl.NewRtAttr(nl.IFLA_INFO_DATA, nil)
	peer := data.AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(pod.IfName))
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(netns.Fd())))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(pod.MTU)))
	peer.AddRtAttr(unix.IFLA_NUM_TX_QUEUES, nl.Uint32Attr(1))
	peer.AddRtAttr(unix.IFLA_NUM_RX_QUEUES, nl.Uint32Attr(1))
	if inner != nil {
		peer.AddChild(inner)
	}
	req := newLink(pod.Host.Name, plan.LinkVeth, data, attrMTU(pod.Host.MTU), outer,
		nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(linkGroup)),
		nl.NewRtAttr(unix.IFLA_NUM_TX_QUEUES, nl.Uint32Attr(1)),
		nl.NewRtAttr(unix.IFLA_NUM_RX_QUEUES, nl.Uint32Attr(1)))
	if master != 0 {
		req.AddData(attrMaster(master))
	}
	return req, nil
}

// setHost gives the host end what the kernel does not take at creation, and sets it up. No IPv6 address of its own:
// a bridge port needs none, and the routed style has a fixed one.
func (p *Pods) setHost(c *conn, host *link, pod *plan.Pod) error {
	attrs := []*nl.RtAttr{attrAlias(pod.Host.Alias)}
	if host.genMode >= 0 {
		attrs = append(attrs, attrNoLinkLocal())
	}
	if pod.Host.Master != "" && pod.Host.Hairpin {
		attrs = append(attrs, attrHairpin(true))
	}
	if pod.HostQueue != nil {
		if err := c.do(newQueue(host.index, p.bucket, pod.HostQueue)); err != nil {
			return queueError(host.name, err)
		}
	}
	reqs := []*nl.NetlinkRequest{setLink(host.index, true, attrs...)}
	for _, a := range pod.HostAddresses {
		reqs = append(reqs, newAddress(host.index, a))
	}
	if err := firstError(c.run(reqs)); err != nil {
		return fmt.Errorf("set up host end %s: %w", host.name, err)
	}
	if len(pod.HostSysctls) == 0 {
		return nil
	}
	if err := Do(p.ns, func() error { return writeSysctls(pod.HostSysctls) }); err != nil {
		return fmt.Errorf("set up host end %s: %w", host.name, err)
	}
	return nil
}

// setInside does all that is done in the workload's namespace, with one visit and one batch.
func (p *Pods) setInside(netns *os.File, index int, pod *plan.Pod) error {
	var c *conn
	err := Do(int(netns.Fd()), func() (err error) {
		if err := quietIPv6(pod); err != nil {
			return err
		}
		c, err = dial()
		return err
	})
	if err != nil {
		return fmt.Errorf("network namespace of %s: %w", pod.Key, err)
	}
	defer c.close()
	if pod.Queue != nil {
		if err := c.do(newQueue(index, p.bucket, pod.Queue)); err != nil {
			return queueError(pod.IfName, err)
		}
	}
	steps, err := insideSteps(index, pod)
	if err != nil {
		return err
	}
	if flags, err := c.flags("lo"); err != nil || flags&unix.IFF_UP == 0 { // runtimes set it up, most of them
		steps = append(steps, op{req: setLink(loopback, true), subject: "loopback up"})
	}
	reqs := make([]*nl.NetlinkRequest, len(steps))
	for i := range steps {
		reqs[i] = steps[i].req
	}
	for i, err := range c.run(reqs) {
		if err != nil {
			return fmt.Errorf("in the network namespace: %s: %w", steps[i].subject, err)
		}
	}
	return nil
}

func insideSteps(index int, pod *plan.Pod) ([]op, error) {
	steps := []op{{req: setLink(index, true), subject: "link " + pod.IfName + " up"}}
	for _, a := range pod.Addresses {
		steps = append(steps, op{req: newAddress(index, a), subject: fmt.Sprintf("address %s on %s", a, pod.IfName)})
	}
	for _, n := range pod.Neighbors {
		hw, err := net.ParseMAC(n.MAC)
		if err != nil {
			return nil, fmt.Errorf("neighbor %s: %w", n.IP, err)
		}
		steps = append(steps, op{req: newNeighbor(index, n.IP, hw), subject: fmt.Sprintf("neighbor %s", n.IP)})
	}
	for i := range pod.Routes {
		r := &pod.Routes[i]
		steps = append(steps, op{req: routeRequest(unix.NLM_F_CREATE|unix.NLM_F_EXCL, r, index, unix.RTPROT_STATIC), subject: fmt.Sprintf("route %s", r.Dst)})
	}
	return steps, nil
}

// quietIPv6 keeps the kernel from making addresses and routes of its own beside those of the plan, and
// from waiting for duplicate detection, when the workload has an IPv6 address.
func quietIPv6(pod *plan.Pod) error {
	for _, a := range pod.Addresses {
		if a.Addr().Is6() {
			dir := "net/ipv6/conf/" + pod.IfName + "/"
			return writeSysctls([]plan.Sysctl{{Key: dir + "accept_ra", Value: "0"}, {Key: dir + "accept_dad", Value: "0"}})
		}
	}
	return nil
}

// setHostRoutes makes the node's routes to the workload. One of ours that an earlier owner of the
// address left is replaced; a foreign one is an error.
func (p *Pods) setHostRoutes(c *conn, host *link, pod *plan.Pod) error {
	for i := range pod.HostRoutes {
		r := &pod.HostRoutes[i]
		err := c.do(routeRequest(unix.NLM_F_CREATE|unix.NLM_F_EXCL, r, host.index, plan.RouteProtocol))
		if errors.Is(err, unix.EEXIST) {
			err = c.replaceOwn(r, host.index, err)
		}
		if err != nil {
			return fmt.Errorf("route %s by %s: %w", r.Dst, host.name, err)
		}
	}
	return nil
}

func (c *conn) replaceOwn(w *plan.Route, index int, exists error) error {
	rs, err := c.routes(familyOf(w.Dst.Addr()), unix.RT_TABLE_MAIN, false)
	if err != nil {
		return err
	}
	for i := range rs {
		if rs[i].dst == w.Dst && rs[i].keyed() {
			return c.do(routeRequest(unix.NLM_F_CREATE|unix.NLM_F_REPLACE, w, index, plan.RouteProtocol))
		}
	}
	return fmt.Errorf("a route is there that is not Heddle's: %w", exists)
}

// Detach implements kernel.Pods.
func (p *Pods) Detach(ctx context.Context, hostLink string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	c, err := p.take()
	if err != nil {
		return err
	}
	defer p.give(c)
	l, err := c.link(hostLink)
	if err != nil || l == nil {
		return err
	}
	if !l.ours() {
		return fmt.Errorf("link %s: not removed: it carries no mark of Heddle (alias %q)", hostLink, l.alias)
	}
	if err := c.do(delLink(l.index)); err != nil && !isGone(err) {
		return fmt.Errorf("remove link %s: %w", hostLink, err)
	}
	return nil
}

func firstError(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
