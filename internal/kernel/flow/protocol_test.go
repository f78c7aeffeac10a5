package flow

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/internal/kernel"
)

// stream sends a packet every few milliseconds and counts the answers.
type stream struct {
	name  string
	proto string // as nft calls it
	flow  kernel.Flow
	conn  net.Conn
	out   []byte
}

// answers counts those to n packets, each waited for so long.
func (s *stream) answers(t *testing.T, n int, wait time.Duration) (got int) {
	t.Helper()
	in := make([]byte, 1500)
	for range n {
		if _, err := s.conn.Write(s.out); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		_ = s.conn.SetReadDeadline(time.Now().Add(wait))
		for {
			size, err := s.conn.Read(in)
			if err != nil {
				break
			}
			if bytes.HasSuffix(in[:size], s.out[4:]) { // and not another ICMPv6 packet of the same host
				got++
				break
			}
		}
	}
	return got
}

// streams opens one of UDP and one of ICMP from a to b.
func (l *lab) streams(v6 bool, port uint16) []*stream {
	l.t.Helper()
	a, b := l.a.addr(v6), l.b.addr(v6)
	to := netip.AddrPortFrom(b, port)
	udp := &stream{name: "UDP", proto: "udp", out: []byte("hello"), flow: kernel.Flow{Protocol: unix.IPPROTO_UDP, Dst: to}}
	var server net.PacketConn
	l.b.do(func() (err error) {
		server, err = net.ListenPacket("udp", to.String())
		return err
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for in := make([]byte, 1500); ; {
			n, from, err := server.ReadFrom(in)
			if err != nil {
				return
			}
			_, _ = server.WriteTo(in[:n], from)
		}
	}()
	l.t.Cleanup(func() {
		_ = server.Close()
		<-done
	})
	l.a.do(func() (err error) {
		udp.conn, err = net.Dial("udp", to.String())
		return err
	})
	udp.flow.Src = udp.conn.LocalAddr().(*net.UDPAddr).AddrPort()

	icmp := &stream{name: "ICMP", proto: "icmp"}
	network, protocol, echo := "ip4:icmp", uint8(unix.IPPROTO_ICMP), byte(8)
	if v6 {
		icmp.proto, network, protocol, echo = "ipv6-icmp", "ip6:ipv6-icmp", unix.IPPROTO_ICMPV6, 128
	}
	icmp.flow = kernel.Flow{
		Protocol: protocol,
		Src:      netip.AddrPortFrom(a, 0), Dst: netip.AddrPortFrom(b, uint16(echo)<<8),
	}
	icmp.out = []byte{echo, 0, 0, 0, byte(port >> 8), byte(port), 0, 1}
	if !v6 {
		sum := uint32(echo)<<8 + uint32(port) + 1
		binary.BigEndian.PutUint16(icmp.out[2:], ^uint16(sum+sum>>16))
	}
	l.a.do(func() (err error) {
		icmp.conn, err = net.Dial(network, b.String())
		return err
	})
	for _, s := range []*stream{udp, icmp} {
		l.t.Cleanup(func() { _ = s.conn.Close() })
	}
	return []*stream{udp, icmp}
}

func TestCutStopsProtocolsWithoutConnections(t *testing.T) {
	for name, make := range map[string]func(testing.TB) *lab{"routed": newLab, "bridged": newBridgeLab} {
		t.Run(name, func(t *testing.T) {
			l := make(t)
			for _, v6 := range []bool{false, true} {
				var all []kernel.Flow
				streams := l.streams(v6, 53)
				for _, s := range streams {
					if got := s.answers(t, 5, 5*time.Second); got != 5 {
						t.Fatalf("%s: %d of 5 answered", s.name, got)
					}
					all = append(all, s.flow)
				}
				seen := l.flows()
				for _, f := range all {
					if !contains(seen, f) {
						t.Errorf("flow %v is not among %v", f, seen)
					}
				}
				for _, s := range streams {
					l.deny(s.proto, l.a.addr(v6), l.b.addr(v6))
					if got := s.answers(t, 1, 5*time.Second); got != 1 {
						t.Fatalf("%s: the rules alone end what is established; the test shows nothing", s.name)
					}
					l.cut(1, func(f kernel.Flow) bool { return f == s.flow })
					if got := s.answers(t, 3, 100*time.Millisecond); got > 0 {
						t.Errorf("%s: %d answers after the cut", s.name, got)
					}
				}
			}
		})
	}
}

func contains(all []kernel.Flow, f kernel.Flow) bool {
	for _, g := range all {
		if f == g {
			return true
		}
	}
	return false
}

// sctp is a packet with one chunk. This kernel has no SCTP of its own, but tracks it.
func sctp(src, dst uint16, tag uint32, chunk byte, body []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, src)
	b = binary.BigEndian.AppendUint16(b, dst)
	b = binary.BigEndian.AppendUint32(b, tag)
	b = append(b, 0, 0, 0, 0, chunk, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(body)))
	b = append(b, body...)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

func TestCutEndsAnAssociation(t *testing.T) {
	l := newLab(t)
	var a, b net.Conn
	l.a.do(func() (err error) { a, err = net.Dial("ip4:132", l.b.v4.String()); return err })
	l.b.do(func() (err error) { b, err = net.Dial("ip4:132", l.a.v4.String()); return err })
	defer a.Close()
	defer b.Close()
	init := func(tag uint32) []byte {
		return append(binary.BigEndian.AppendUint32(nil, tag), 0, 0, 0x10, 0, 0, 1, 0, 1, 0, 0, 0, 1)
	}
	in := make([]byte, 1500)
	pass := func(from, to net.Conn, packet []byte) bool {
		t.Helper()
		if _, err := from.Write(packet); err != nil {
			t.Fatal(err)
		}
		_ = to.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		n, err := to.Read(in)
		return err == nil && n > 0
	}
	data := sctp(5000, 38412, 22, 0, []byte{0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 'h', 'i', 0, 0})
	if !pass(a, b, sctp(5000, 38412, 0, 1, init(11))) || // INIT
		!pass(b, a, sctp(38412, 5000, 11, 2, init(22))) || // INIT ACK
		!pass(a, b, sctp(5000, 38412, 22, 10, []byte("cake"))) || // COOKIE ECHO
		!pass(b, a, sctp(38412, 5000, 11, 11, nil)) || // COOKIE ACK
		!pass(a, b, data) {
		t.Fatalf("no association:\n%s", l.conntrack())
	}
	if table := l.conntrack(); !strings.Contains(table, "sctp") || !strings.Contains(table, "ESTABLISHED") {
		t.Fatalf("not tracked as established:\n%s", table)
	}
	l.deny("sctp", l.a.v4, l.b.v4)
	l.deny("sctp", l.b.v4, l.a.v4)
	want := kernel.Flow{
		Protocol: unix.IPPROTO_SCTP,
		Src:      netip.AddrPortFrom(l.a.v4, 5000), Dst: netip.AddrPortFrom(l.b.v4, 38412),
	}
	l.cut(1, func(f kernel.Flow) bool { return f == want })
	if table := l.conntrack(); strings.Contains(table, "sctp") {
		t.Errorf("still in the table:\n%s", table)
	}
	if pass(a, b, data) {
		t.Error("data still passes")
	}
}

// TestCutJudgesExpectedFlowsByTheirMaster: an FTP data connection was let in because of its control connection.
func TestCutJudgesExpectedFlowsByTheirMaster(t *testing.T) {
	l := newLab(t)
	l.host.nft(`table inet help {
		ct helper ftp-std { type "ftp" protocol tcp; }
		chain pre { type filter hook prerouting priority filter; tcp dport 21 ct helper set "ftp-std"; }
	}`)
	control := netip.AddrPortFrom(l.b.v4, 21)
	client, server := connect(l.a, l.b.listen(control), control)
	data := netip.AddrPortFrom(l.b.v4, 200<<8|10)
	lines := bufio.NewReader(client)
	for _, line := range []string{"220 hello", "227 Entering Passive Mode (10,9,2,1,200,10)"} { // it looks at whole lines
		if _, err := server.Write([]byte(line + "\r\n")); err != nil {
			t.Fatal(err)
		}
		if _, err := lines.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	l.deny("tcp", l.a.v4, l.b.v4)
	dataClient, dataServer := connect(l.a, l.b.listen(data), data) // else it is not allowed

	l.cut(0, func(f kernel.Flow) bool { return f.Dst != control })
	if _, err := dataClient.Write([]byte("x")); err != nil {
		t.Errorf("the data connection of an allowed control connection: %v", err)
	}
	l.cut(2, func(kernel.Flow) bool { return true })
	for what, c := range map[string]net.Conn{"control": client, "control's server": server, "data": dataClient, "data's server": dataServer} {
		if what == "data's server" {
			_, _ = c.Read(make([]byte, 1)) // the x
		}
		wantReset(t, what, c)
	}
}

// TestCutWithoutSocketDestruction is what a kernel without CONFIG_INET_DIAG_DESTROY gets.
func TestCutWithoutSocketDestruction(t *testing.T) {
	l := newLab(t)
	var log bytes.Buffer
	l.d.log = slog.New(slog.NewTextHandler(&log, nil))
	l.d.protocol = unix.IPPROTO_SCTP // of which this kernel destroys none
	for port := range uint16(2) {
		to := netip.AddrPortFrom(l.b.v4, 80+port)
		client, server := connect(l.a, l.b.listen(to), to)
		received := make(chan int, 1000)
		go func() {
			defer close(received)
			for b := make([]byte, 32<<10); ; {
				n, err := server.Read(b)
				if err != nil {
					return
				}
				select {
				case received <- n:
				default:
				}
			}
		}()
		newSender(t, client)
		<-received
		l.deny("tcp", l.a.v4, l.b.v4)
		l.deny("tcp", l.b.v4, l.a.v4) // else b's acknowledgements make an entry anew
		l.cut(1, func(f kernel.Flow) bool { return f.Dst == to })
		time.Sleep(50 * time.Millisecond)
		for len(received) > 0 {
			<-received
		}
		select {
		case n := <-received:
			t.Errorf("%d bytes came after the cut", n)
		case <-time.After(500 * time.Millisecond): // the sender repeats itself meanwhile
		}
		l.cut(0, func(f kernel.Flow) bool { return f.Dst == to || f.Src == to })
		_ = server.Close()
		for range received {
		}
		l.host.run("nft", "flush", "set", "inet", "t", "denied4")
	}
	if n := strings.Count(log.String(), "cannot destroy sockets"); n != 1 {
		t.Errorf("warned %d times, want once:\n%s", n, log.String())
	}
}

// TestRulesCanResetWhatHasNoSocketToDestroy is how a stream ends where its sockets cannot be destroyed, be it that the
// kernel does not, or that the workload has a TCP of its own: by rules that answer a packet from amid a stream that is
// not tracked. Without them a packet of the other direction, if that is allowed, tracks the stream anew.
func TestRulesCanResetWhatHasNoSocketToDestroy(t *testing.T) {
	l := newLab(t)
	l.d.protocol = unix.IPPROTO_SCTP
	to := netip.AddrPortFrom(l.b.v4, 80)
	client, server := connect(l.a, l.b.listen(to), to)
	l.host.nft(`table inet amid { chain forward {
		type filter hook forward priority filter - 1
		ct state new tcp flags & (syn | rst) == 0 reject with tcp reset
	}; }`)
	sending := newSender(t, client)
	l.deny("tcp", l.a.v4, l.b.v4)
	l.cut(1, func(f kernel.Flow) bool { return f.Dst == to })
	wantReset(t, "sending client", sending)
	_ = server.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := io.Copy(io.Discard, server); errors.Is(err, os.ErrDeadlineExceeded) { // idle: it learns when it sends
		_, _ = server.Write([]byte("x"))
		wantReset(t, "receiving server", server)
	}
	l.cut(0, tcp(func(kernel.Flow) bool { return true }))
}

// TestSocketProbeAsksTheKernel wants the two ways in which kernels say that they cannot.
func TestSocketProbeAsksTheKernel(t *testing.T) {
	l := newSpace(t)
	c, err := dial(t.Context(), l.fd, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for protocol, want := range map[uint8]error{
		unix.IPPROTO_TCP:  nil,
		unix.IPPROTO_SCTP: unix.ENOENT,
	} {
		if got := c.probe(protocol); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("protocol %d: %v, want %v", protocol, got, want)
		}
	}
}
