//go:build scale

package bgp_test

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/osrg/gobgp/v4/pkg/packet/bgp"

	"github.com/heddle-net/heddle/internal/peering"
)

// The scale: 500 nodes with 10 routes each, unless HEDDLE_BGP_NODES says otherwise; together they have 5,000.
var (
	simulated = number("HEDDLE_BGP_NODES", 500)
	each      = 5000 / simulated
)

func number(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// client is a simulated node: an iBGP client of both reflectors that announces its blocks and counts what it is
// told. It keeps nothing else.
type client struct {
	n     int
	conns [2]net.Conn
	seen  [2]atomic.Int64 // prefixes told by a reflector
	fresh [2]atomic.Bool  // it was told of the new block
}

func (c *client) addr() netip.Addr {
	return netip.AddrFrom4([4]byte{10, 98, byte(c.n >> 8), byte(c.n)})
}

var newBlock = prefix("10.250.255.0/26")

var pool = []netip.Prefix{prefix("10.192.0.0/10")}

func blockOf(n int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 192 + byte(n>>10), byte(n >> 2), byte(n&3) << 6}), 26)
}

func update(from netip.Addr, withdraw bool, prefixes ...netip.Prefix) []byte {
	var nlri []bgp.PathNLRI
	for _, p := range prefixes {
		x, _ := bgp.NewIPAddrPrefix(p)
		nlri = append(nlri, bgp.PathNLRI{NLRI: x})
	}
	m := bgp.NewBGPUpdateMessage(nlri, nil, nil)
	if !withdraw {
		hop, _ := bgp.NewPathAttributeNextHop(from)
		m = bgp.NewBGPUpdateMessage(nil, []bgp.PathAttributeInterface{bgp.NewPathAttributeOrigin(0), bgp.NewPathAttributeAsPath(nil), hop, bgp.NewPathAttributeLocalPref(100)}, nlri)
	}
	b, _ := m.Serialize()
	return b
}

// join connects to one reflector until it is taken, announces, and listens until the connection ends.
func (c *client) join(t *testing.T, k int, reflector netip.Addr, wg *sync.WaitGroup) {
	open, _ := bgp.NewBGPOpenMessage(64512, 240, c.addr(), []bgp.OptionParameterInterface{bgp.NewOptionParameterCapability([]bgp.ParameterCapabilityInterface{
		bgp.NewCapMultiProtocol(bgp.RF_IPv4_UC), bgp.NewCapFourOctetASNumber(64512),
	})})
	hello, _ := open.Serialize()
	alive, _ := bgp.NewBGPKeepAliveMessage().Serialize()
	d := net.Dialer{Timeout: 5 * time.Second, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.addr(), 0))}
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(300 * time.Millisecond) {
		conn, err := d.Dial("tcp", netip.AddrPortFrom(reflector, 179).String())
		if err != nil {
			continue
		}
		if _, err := conn.Write(slices.Concat(hello, alive)); err != nil || !skip(conn) || !skip(conn) {
			_ = conn.Close()
			continue
		}
		var own []netip.Prefix
		for i := range each {
			own = append(own, blockOf(c.n*each+i))
		}
		eor, _ := bgp.NewEndOfRib(bgp.RF_IPv4_UC).Serialize()
		if _, err := conn.Write(slices.Concat(update(c.addr(), false, own...), eor)); err != nil {
			_ = conn.Close()
			continue
		}
		c.conns[k] = conn
		wg.Go(func() { c.listen(k, conn) })
		return
	}
	t.Errorf("client %d is not taken by %s", c.n, reflector)
}

func skip(c net.Conn) bool {
	head := make([]byte, 19)
	if _, err := io.ReadFull(c, head); err != nil {
		return false
	}
	_, err := io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(head[16:]))-19)
	return err == nil
}

func (c *client) listen(k int, conn net.Conn) {
	head, body := make([]byte, 19), make([]byte, 4096)
	for {
		if _, err := io.ReadFull(conn, head); err != nil {
			return
		}
		b := body[:binary.BigEndian.Uint16(head[16:])-19]
		if _, err := io.ReadFull(conn, b); err != nil {
			return
		}
		if head[18] != bgp.BGP_MSG_UPDATE {
			continue
		}
		gone := int(binary.BigEndian.Uint16(b))
		attrs := int(binary.BigEndian.Uint16(b[2+gone:]))
		for p := b[4+gone+attrs:]; len(p) > 0; p = p[1+(p[0]+7)/8:] {
			c.seen[k].Add(1)
			if p[0] == 26 && p[1] == 10 && p[2] == 250 && p[3] == 255 {
				c.fresh[k].Store(true)
			}
		}
	}
}

// reflectors are a pair of one kind; stop ends them.
func reflectors(t *testing.T, whose string) (stop func(), pids []int) {
	if whose == "heddle" {
		var as []*agent
		for n := 1; n <= 2; n++ {
			p := newPlan(n)
			p.ClusterID, p.Believed = at(1), pool
			p.Neighbors = nil
			for i := range simulated {
				knows(&p, (&client{n: i}).addr(), func(x *peering.Neighbor) {
					x.Client, x.Passive, x.Node, x.HoldTime = true, true, "sim", 240*time.Second
				})
			}
			knows(&p, at(3), func(x *peering.Neighbor) { x.Client, x.Node = true, "node" })
			knows(&p, at(104), func(x *peering.Neighbor) { x.Client, x.Node = true, "node" })
			a := newAgent(t, p)
			as = append(as, a)
			pids = append(pids, a.cmd.Process.Pid)
		}
		return func() {
			for _, a := range as {
				a.kill()
			}
		}, pids
	}
	var ds []*daemon
	for n := 1; n <= 2; n++ {
		conf := map[string]string{"bird.conf": fmt.Sprintf(`
log "DIR/log" all;
router id %[1]s;
protocol device { scan time 10; }
protocol direct { ipv4; }
template bgp sim { local %[1]s as 64512; rr client; rr cluster id 10.99.0.1; multihop; passive; hold time 240; graceful restart on; ipv4 { import all; export where source = RTS_BGP; }; }
protocol bgp clients from sim { neighbor range 10.98.0.0/16 as 64512; dynamic name "c"; }
protocol bgp ours from sim { neighbor 10.99.0.3 as 64512; }
protocol bgp theirs from sim { neighbor 10.99.0.104 as 64512; }
`, at(110+n))}
		d := newDaemon(t, bird, 110+n, conf)
		d.ask("ip", "route", "add", "10.98.0.0/16", "via", "10.99.0.1")
		ds = append(ds, d)
		pids = append(pids, d.procs[0].Process.Pid)
	}
	return func() {
		for _, d := range ds {
			d.kill()
		}
	}, pids
}

func median[T int | int64 | float64 | time.Duration](v []T) T {
	slices.Sort(v)
	return v[len(v)/2]
}

// TestFiveHundredNodesThroughTwoReflectors measures, with reflectors of ours and with BIRD's in turn: how long a
// new block takes to all nodes, how long a node of ours and one of BIRD's take to learn all routes again after
// they were killed, and how much memory each takes.
func TestFiveHundredNodesThroughTwoReflectors(t *testing.T) {
	t.Setenv(terse, "1")
	must("ip addr add 10.98.0.1/16 dev lo") // all of it is ours
	spread := map[string][]time.Duration{}
	relearn := map[string][]time.Duration{}
	memory := map[string][]int{}
	once := func(whose string) {
		stop, pids := reflectors(t, whose)
		defer stop()
		where := [2]netip.Addr{at(1), at(2)}
		if whose == "bird" {
			where = [2]netip.Addr{at(111), at(112)}
		}
		cs := make([]*client, simulated)
		var joining, listening sync.WaitGroup
		for i := range cs {
			cs[i] = &client{n: i}
			for k := range where {
				joining.Go(func() { cs[i].join(t, k, where[k], &listening) })
			}
			if i%50 == 49 {
				joining.Wait() // not all connections at once
			}
		}
		defer listening.Wait()
		defer func() {
			for _, c := range cs {
				for _, conn := range c.conns {
					if conn != nil {
						_ = conn.Close()
					}
				}
			}
		}()
		all := func(told func(c *client, k int) bool) func() bool {
			return func() bool {
				for _, c := range cs[1:] {
					for k := range where {
						if !told(c, k) {
							return false
						}
					}
				}
				return true
			}
		}
		began := time.Now()
		defer func() {
			if t.Failed() {
				for k := range where {
					var seen []int64
					for _, c := range cs {
						seen = append(seen, c.seen[k].Load())
					}
					slices.Sort(seen)
					t.Logf("%s told clients of %d to %d prefixes, median %d", where[k], seen[0], seen[len(seen)-1], seen[len(seen)/2])
				}
			}
		}()
		until(t, "all clients have all routes", all(func(c *client, k int) bool { return int(c.seen[k].Load()) >= (simulated-1)*each }))
		t.Logf("%s reflectors: all had all %s after they were connected", whose, time.Since(began).Round(time.Millisecond))
		for _, pid := range pids {
			memory[whose+" reflector"] = append(memory[whose+" reflector"], rss(pid)/1024)
		}
		time.Sleep(2 * time.Second)
		began = time.Now()
		for _, conn := range cs[0].conns {
			_, _ = conn.Write(update(cs[0].addr(), false, newBlock))
		}
		fresh := all(func(c *client, k int) bool { return c.fresh[k].Load() })
		for end := began.Add(time.Minute); !fresh() && time.Now().Before(end); time.Sleep(time.Millisecond) {
		}
		spread[whose] = append(spread[whose], time.Since(began))

		// A node of ours, and one of BIRD's, killed and started again.
		p := newPlan(3)
		p.Believed = pool
		for _, a := range where {
			knows(&p, a, func(x *peering.Neighbor) { x.Node = "reflector" })
		}
		a := newAgent(t, p)
		have := func() bool { v := a.view(); return v.Count >= 2*simulated*each && v.Settled }
		until(t, "our node has all routes", have)
		memory["heddle node"] = append(memory["heddle node"], rss(a.cmd.Process.Pid)/1024)
		a.kill()
		began = time.Now()
		a.start()
		for end := began.Add(time.Minute); !have() && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		}
		relearn["heddle node, "+whose+" reflectors, at once"] = append(relearn["heddle node, "+whose+" reflectors, at once"], time.Since(began))
		a.kill()
		time.Sleep(6 * time.Second)
		began = time.Now()
		a.start()
		for end := began.Add(time.Minute); !have() && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		}
		relearn["heddle node, "+whose+" reflectors, 6 s later"] = append(relearn["heddle node, "+whose+" reflectors, 6 s later"], time.Since(began))
		a.kill()

		conf := fmt.Sprintf(`
log "DIR/log" all;
router id %[1]s;
protocol device { scan time 10; }
protocol direct { ipv4; }
template bgp up { local %[1]s as 64512; multihop; graceful restart on; connect delay time 1; ipv4 { import all; export none; }; }
protocol bgp r1 from up { neighbor %[2]s as 64512; }
protocol bgp r2 from up { neighbor %[3]s as 64512; }
`, at(104), where[0], where[1])
		d := newDaemon(t, bird, 104, map[string]string{"bird.conf": conf})
		total := regexp.MustCompile(`(\d+) of \d+ routes for`)
		count := func() bool {
			m := total.FindStringSubmatch(d.ask("birdc", "-r", "-s", d.file("ctl"), "show", "route", "count"))
			if m == nil {
				return false
			}
			n, _ := strconv.Atoi(m[1])
			return n >= 2*simulated*each
		}
		until(t, "BIRD has all routes", count)
		memory["bird node"] = append(memory["bird node"], rss(d.procs[0].Process.Pid)/1024)
		d.kill()
		began = time.Now()
		d.start()
		for end := began.Add(time.Minute); !count() && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		}
		relearn["bird node, "+whose+" reflectors, at once"] = append(relearn["bird node, "+whose+" reflectors, at once"], time.Since(began))
		d.kill()
	}
	for range number("HEDDLE_BGP_ROUNDS", 5) {
		for _, whose := range []string{"heddle", "bird"} {
			once(whose)
		}
	}
	for name, v := range spread {
		t.Logf("a new block reaches all %d nodes through %s reflectors: median %s of %v", simulated, name, median(v).Round(time.Millisecond), v)
	}
	for name, v := range relearn {
		t.Logf("%s: %d routes again after %s, median of %v", name, simulated*each, median(v).Round(10*time.Millisecond), v)
	}
	for name, v := range memory {
		t.Logf("%s: %d MiB resident, median of %v", name, median(v), v)
	}
	if m := median(spread["heddle"]); m > time.Second {
		t.Errorf("a new block takes %s to all, want less than 1 s", m)
	}
	if m := median(memory["heddle node"]); m > 150 {
		t.Errorf("%d MiB resident, want less than 150", m)
	}
}
