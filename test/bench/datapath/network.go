package datapath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"

	"github.com/heddle-net/heddle/internal/kernel/netlink"
	"github.com/heddle-net/heddle/internal/kernel/nft"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/plan"
	"github.com/heddle-net/heddle/test/bench/space"
)

// network is two nodes on one wire with a pod on each, in namespaces of their own:
//
//	client pod --- node a ===(uplink)=== node b --- server pod
type network struct {
	name   string
	about  string
	client *space.Space // where the load comes from
	server *space.Space
	addr   netip.Addr // the server's
	all    []*space.Space
}

const cluster = "10.244.0.0/16"

var (
	blocks    = []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("10.244.2.0/24")}
	nodeNames = []string{"a", "b"}
)

func nodeAddr(i int) netip.Prefix { return netip.MustParsePrefix(fmt.Sprintf("192.168.7.%d/24", i+1)) }
func podAddr(i int) netip.Addr    { return netip.MustParseAddr(fmt.Sprintf("10.244.%d.2", i+1)) }

func (n *network) close() {
	for _, s := range n.all {
		s.Close()
	}
}

// spaces makes n namespaces.
func (n *network) spaces(count int) ([]*space.Space, error) {
	var out []*space.Space
	for range count {
		s, err := space.New()
		if err != nil {
			return nil, err
		}
		out, n.all = append(out, s), append(n.all, s)
	}
	return out, nil
}

// wire makes the two nodes and the uplink between them.
func (n *network) wire() ([]*space.Space, error) {
	nodes, err := n.spaces(2)
	if err != nil {
		return nil, err
	}
	if err := space.Veth(nodes[0], "uplink", nodes[1], "uplink"); err != nil {
		return nil, err
	}
	for i, s := range nodes {
		if err := s.Lines(fmt.Sprintf("addr add %s dev uplink\nlink set uplink up", nodeAddr(i))); err != nil {
			return nil, err
		}
	}
	return nodes, nil
}

// hosts is the first floor: no pods, the nodes themselves talk.
func hosts(_ context.Context, n *network) error {
	nodes, err := n.wire()
	if err != nil {
		return err
	}
	n.client, n.server, n.addr = nodes[0], nodes[1], nodeAddr(1).Addr()
	return nil
}

// static is the second floor, to which all ratios are: pods on bare veths, and routes by hand.
func static(_ context.Context, n *network) error {
	nodes, err := n.wire()
	if err != nil {
		return err
	}
	pods, err := n.spaces(2)
	if err != nil {
		return err
	}
	for i := range nodes {
		if err := space.Veth(nodes[i], "pod", pods[i], "eth0"); err != nil {
			return err
		}
		gw := blocks[i].Addr().Next()
		if err := errors.Join(
			nodes[i].Sysctl("net/ipv4/ip_forward", "1"),
			nodes[i].Lines(fmt.Sprintf("addr add %s/24 dev pod\nlink set pod up\nroute add %s via %s", gw, blocks[1-i], nodeAddr(1-i).Addr())),
			pods[i].Lines(fmt.Sprintf("addr add %s/24 dev eth0\nlink set eth0 up\nroute add default via %s", podAddr(i), gw)),
		); err != nil {
			return err
		}
	}
	n.client, n.server, n.addr = pods[0], pods[1], podAddr(1)
	return nil
}

// setting is what the networks of Heddle's own plan differ in.
type setting struct {
	path       model.Path
	attachment model.Attachment
	filter     bool // with Heddle's own tables
	flannel    bool // with Flannel's iptables rules
	// more is done to node i when all else stands: what a trial is about.
	more func(node *space.Space, i int) error
}

// planned builds the product's own plan and applies it with the product's own drivers.
func planned(set setting) func(context.Context, *network) error {
	return func(ctx context.Context, n *network) error {
		nodes, err := n.wire()
		if err != nil {
			return err
		}
		pods, err := n.spaces(2)
		if err != nil {
			return err
		}
		for i := range nodes {
			in := input(i, set)
			p, err := plan.Build(in)
			if err != nil {
				return err
			}
			if err := apply(ctx, nodes[i], &p, set); err != nil {
				return err
			}
			if err := attach(ctx, nodes[i], pods[i], plan.PodOf(in, in.Workloads[0], p.MTU)); err != nil {
				return err
			}
			if err := apply(ctx, nodes[i], &p, set); err != nil { // the pod's host end is there now
				return err
			}
			if set.filter {
				if err := police(nodes[i], sourcesOf(i)); err != nil {
					return err
				}
			}
			if set.flannel {
				if err := flannelRules(nodes[i], blocks[i]); err != nil {
					return err
				}
			}
			if set.more != nil {
				if err := set.more(nodes[i], i); err != nil {
					return err
				}
			}
		}
		n.client, n.server, n.addr = pods[0], pods[1], podAddr(1)
		return nil
	}
}

// input is what node i's agent would hand to plan.Build.
func input(i int, set setting) plan.Input {
	pool := model.Pool{
		Name: "default", CIDR: netip.MustParsePrefix(cluster), BlockSize: 24,
		Path: set.path, Encap: model.EncapNever, Masquerade: true,
	}
	if set.path == model.PathVXLAN {
		pool.Encap = model.EncapAlways
		pool.VXLAN = model.VXLAN{VNI: model.DefaultVNI, Port: model.DefaultPort}
	}
	in := plan.Input{Self: nodeNames[i], Attachment: set.attachment, Bridge: plan.DefaultBridge}
	in.Cluster.Pools = []model.Pool{pool}
	for k, name := range nodeNames {
		node := model.Node{Name: name, Address4: nodeAddr(k).Addr(), Uplinks: []model.Uplink{{Link: "uplink", Prefix: nodeAddr(k), MTU: 1500}}}
		if set.path == model.PathVXLAN {
			node.VTEP4 = plan.VTEPMAC(name, model.DefaultVNI, model.IPv4)
			node.Accepts = []model.Path{model.PathDirect, model.PathVXLAN}
		}
		in.Cluster.Nodes = append(in.Cluster.Nodes, node)
		in.Cluster.Blocks = append(in.Cluster.Blocks, model.Block{CIDR: blocks[k], Pool: pool.Name, Node: name})
	}
	in.Host.Uplinks = in.Cluster.Nodes[i].Uplinks
	id := "bench-" + nodeNames[i]
	in.Workloads = []model.Workload{{
		ContainerID: id, IfName: "eth0", Attachment: set.attachment, Addresses: []netip.Addr{podAddr(i)},
		HostLink: model.HostLinkName(id, "eth0"),
	}}
	return in
}

func apply(ctx context.Context, s *space.Space, p *plan.Plan, set setting) error {
	quiet := slog.New(slog.DiscardHandler)
	links, err := netlink.New(netlink.Options{NS: int(s.File().Fd()), Log: quiet})
	if err != nil {
		return err
	}
	defer links.Close()
	_, problems := links.Apply(ctx, p)
	if set.filter {
		filter, err := nft.New(nft.Options{NS: int(s.File().Fd()), Log: quiet})
		if err != nil {
			return err
		}
		_, more := filter.Apply(ctx, p)
		problems = append(problems, more...)
	}
	var words []string
	for _, q := range append(problems, p.Problems...) {
		// The first pass runs before the pod is attached, and says so.
		if !strings.HasPrefix(q.Subject, "link hd") {
			words = append(words, q.String())
		}
	}
	if len(words) > 0 {
		return fmt.Errorf("node %s: %s", p.Node, strings.Join(words, "; "))
	}
	return nil
}

func attach(ctx context.Context, node, pod *space.Space, p plan.Pod) error {
	pods, err := netlink.NewPods(netlink.Options{NS: int(node.File().Fd())})
	if err != nil {
		return err
	}
	defer pods.Close()
	return pods.Attach(ctx, pod.File(), p)
}

// flannelRules are what flanneld keeps in iptables for --ip-masq and forwarding.
func flannelRules(s *space.Space, own netip.Prefix) error {
	masq := func(match, target string) string {
		return "-A FLANNEL-POSTRTG " + match + ` -m comment --comment "flanneld masq" -j ` + target + "\n"
	}
	text := "*nat\n:FLANNEL-POSTRTG - [0:0]\n" +
		`-A POSTROUTING -m comment --comment "flanneld masq" -j FLANNEL-POSTRTG` + "\n" +
		masq("-m mark --mark 0x4000/0x4000", "RETURN") +
		masq("-s "+own.String()+" -d "+cluster, "RETURN") +
		masq("-s "+cluster+" -d "+own.String(), "RETURN") +
		masq("! -s "+cluster+" -d "+own.String(), "RETURN") +
		masq("-s "+cluster+" ! -d 224.0.0.0/4", "MASQUERADE --random-fully") +
		masq("! -s "+cluster+" -d "+cluster, "MASQUERADE --random-fully") +
		"COMMIT\n*filter\n:FLANNEL-FWD - [0:0]\n" +
		`-A FORWARD -m comment --comment "flanneld forward" -j FLANNEL-FWD` + "\n" +
		"-A FLANNEL-FWD -s " + cluster + ` -m comment --comment "flanneld forward" -j ACCEPT` + "\n" +
		"-A FLANNEL-FWD -d " + cluster + ` -m comment --comment "flanneld forward" -j ACCEPT` + "\n" +
		"COMMIT\n"
	return s.Run(text, "iptables-restore")
}

// podMAC is the MAC of node i's pod.
func podMAC(i int) string {
	in := input(i, setting{attachment: model.AttachBridge})
	return plan.PodOf(in, in.Workloads[0], 1500).MAC
}
