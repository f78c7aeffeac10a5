package filter

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/policy"
)

// closed is a table in which a and b take nothing and send nothing, but what is added.
func closed() *policy.Table {
	t := &policy.Table{
		Identities: map[netip.Addr]policy.ID{addr(a4): 1, addr(a6): 1},
		Locals:     map[policy.Local]policy.Row{}, Rows: map[policy.RowKey]policy.Row{}, L4: map[policy.L4Key]policy.Decision{},
		Base:    map[policy.Row]policy.Decision{1: deny, 2: allow},
		Sources: sources(),
	}
	for _, a := range []string{a4, a6, b4, b6} {
		t.Locals[in(a)], t.Locals[out(a)] = 1, 1
	}
	return t
}

func TestPriorityIsSetBack(t *testing.T) {
	w := newWorld(t, false)
	d := w.node.driver(true)
	table := closed()
	for _, a := range []string{a4, a6, b4, b6} {
		table.Locals[in(a)], table.Locals[out(a)] = 2, 2
	}
	apply(t, d, table)
	var see strings.Builder
	see.WriteString("table inet see { chain c { type filter hook forward priority 10;\n")
	for _, ip := range []string{"ip", "ip6"} {
		for _, prio := range []string{"none", "0:2", "0:6", "0:4"} {
			fmt.Fprintf(&see, "meta nfproto %s udp dport 7 meta priority %s counter comment \"%s\"\n", map[string]string{"ip": "ipv4", "ip6": "ipv6"}[ip], prio, ip+" "+prio)
		}
	}
	see.WriteString("}\n}\n")
	w.node.feed(see.String(), "nft", "-f", "-")
	send := func(to string, tos int) {
		must(t, w.a.inside(func() error {
			c, err := net.Dial("udp", net.JoinHostPort(to, "7"))
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			raw, err := c.(*net.UDPConn).SyscallConn()
			if err != nil {
				return err
			}
			level, option := unix.IPPROTO_IP, unix.IP_TOS
			if strings.Contains(to, ":") {
				level, option = unix.IPPROTO_IPV6, unix.IPV6_TCLASS
			}
			if cerr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, tos) }); cerr != nil || err != nil {
				return fmt.Errorf("%w %w", cerr, err)
			}
			_, err = c.Write([]byte("x"))
			return err
		}))
	}
	for _, c := range []struct {
		tos  int
		want string
	}{{0, "ip none"}, {0xe0, "ip none"}, {0x08, "ip 0:2"}, {0x10, "ip 0:6"}, {0x18, "ip 0:4"}} {
		for to, want := range map[string]string{b4: c.want, b6: "ip6 none"} {
			w.node.feed("flush table inet see\n"+see.String(), "nft", "-f", "-")
			w.forget()
			send(to, c.tos)
			eventually(t, fmt.Sprintf("a packet with TOS %#x is seen as %s", c.tos, want), func() bool {
				for line := range strings.Lines(w.node.run("nft", "list", "table", "inet", "see")) {
					if strings.Contains(line, `"`+want+`"`) {
						return strings.Contains(line, "packets 1 ")
					}
				}
				return false
			})
		}
	}
}

func TestAWorkloadReachesItself(t *testing.T) {
	for _, bridged := range []bool{false, true} {
		w := newWorld(t, bridged)
		w.node.feed(`table inet nat { chain prerouting { type nat hook prerouting priority dstnat; ip daddr 10.96.0.1 dnat ip to `+a4+`; ip6 daddr fd00:96::1 dnat ip6 to `+a6+`; }; }`, "nft", "-f", "-")
		d := w.node.driver(true)
		apply(t, d, closed())
		look := eye{t, w.a.raw("eth0")}
		for service, own := range map[string]bool{"10.96.0.1": true, "fd00:96::1": true, b4: false} {
			mark := "to " + service + " and back"
			must(t, w.a.inside(func() error {
				c, err := net.Dial("udp", net.JoinHostPort(service, "7"))
				if err != nil {
					return err
				}
				defer func() { _ = c.Close() }()
				_, err = c.Write([]byte(mark))
				return err
			}))
			if got := look.sees([]byte(mark), 300*time.Millisecond); got != own {
				t.Errorf("bridged %v: %s comes back %v", bridged, service, got)
			}
		}
	}
}

// talk keeps a TCP connection talking, to and fro, and counts its words, until the test ends.
func talk(t *testing.T, from, to space, addr, port string) (words func() int64) {
	t.Helper()
	l, err := listen(to, net.JoinHostPort(addr, port))
	must(t, err)
	go func() {
		c, err := l.Accept()
		if err == nil {
			_, _ = io.Copy(c, c)
			_ = c.Close()
		}
	}()
	var c net.Conn
	must(t, from.inside(func() (err error) {
		c, err = net.DialTimeout("tcp", net.JoinHostPort(addr, port), 5*time.Second)
		return err
	}))
	var n atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4)
		for {
			if _, err := c.Write([]byte("word")); err != nil {
				return
			}
			if _, err := io.ReadFull(c, buf); err != nil {
				return
			}
			n.Add(1)
			time.Sleep(time.Millisecond)
		}
	}()
	t.Cleanup(func() { _, _ = c.Close(), l.Close(); <-done })
	return n.Load
}

// goesOn waits for more words.
func goesOn(t *testing.T, what string, words func() int64) {
	t.Helper()
	seen := words()
	eventually(t, "the connection goes on after "+what, func() bool { return words() > seen+5 })
}

func TestEstablishedFlowsAreNotInterrupted(t *testing.T) {
	w := newWorld(t, false)
	d := w.node.driver(false)
	apply(t, d, &policy.Table{Sources: sources()})
	four, six := talk(t, w.a, w.b, b4, "9999"), talk(t, w.a, w.b, b6, "9999")
	check := func(what string) {
		goesOn(t, what, four)
		goesOn(t, what, six)
		if reached(t, w.a, w.b, b4, "tcp 80") {
			t.Errorf("after %s a new connection comes about", what)
		}
	}
	apply(t, d, closed())
	check("a table that allows it no more")
	w.node.run("nft", "add", "rule", "inet", TableName, "judge", "accept")
	if n := apply(t, d, closed()); n < 100 {
		t.Errorf("changed %d objects, want the table made anew", n)
	}
	check("making the table anew")
	w.node.run("nft", "flush", "ruleset")
	apply(t, d, closed())
	check("a ruleset that was flushed")
	must(t, d.Close())
	apply(t, w.node.driver(true), closed())
	check("a new driver")
}

// TestBridgedFlowsGoOnWhenThePacketFilterIsCalled: connections that nobody tracked, as the bridge carried
// them, are picked up when it begins to hand its packets over, and then policy comes.
func TestBridgedFlowsGoOnWhenThePacketFilterIsCalled(t *testing.T) {
	w := newWorld(t, true)
	call := func(on string) {
		w.node.run("ip", "link", "set", "cni0", "type", "bridge", "nf_call_iptables", on, "nf_call_ip6tables", on)
	}
	call("0")
	// As on every node, something is masqueraded: that makes the kernel track connections.
	w.node.feed("table inet nat { chain c { type nat hook postrouting priority srcnat; ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade; }; }", "nft", "-f", "-")
	d := w.node.driver(true, "cni0")
	apply(t, d, &policy.Table{Sources: sources()})
	four, six := talk(t, w.a, w.b, b4, "9999"), talk(t, w.a, w.b, b6, "9999")
	goesOn(t, "its beginning", four)
	if tracked := w.node.tracked(); strings.Contains(tracked, "dport=9999") {
		t.Fatalf("tracked before the packet filter is called:\n%s", tracked)
	}
	call("1")
	goesOn(t, "the switch", four)
	goesOn(t, "the switch", six)
	table := closed() // b takes from a what it did; nobody else, and a takes nothing
	for _, l := range []policy.Local{in(b4), in(b6)} {
		table.Rows[policy.RowKey{Local: l, ID: 1}] = 3
	}
	table.L4[policy.L4Key{Row: 3, Protocol: 6, Src: policy.AllPorts, Dst: port(9999)}], table.Base[3] = allow, deny
	table.Locals[out(a4)], table.Locals[out(a6)] = 2, 2
	apply(t, d, table)
	goesOn(t, "policy", four)
	goesOn(t, "policy", six)
	if reached(t, w.b, w.a, a4, "tcp 80") {
		t.Error("what policy denies passes")
	}
}
