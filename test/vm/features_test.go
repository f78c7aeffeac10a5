//go:build vm

// Package vm tests that the test machine (build/vm) has what tests with the build tag vm rely on: each
// feature carries traffic between two namespaces, and what goes over the wire is counted.
package vm

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/test/harness"
)

// The two ends of the wire, and what runs over it.
const (
	left, right         = "192.0.2.1", "192.0.2.2"
	left6, right6       = "2001:db8::1", "2001:db8::2"
	inLeft, inRight     = "10.9.0.1", "10.9.0.2"
	inLeft6, inRight6   = "fd09::1", "fd09::2"
	wire                = "wire" // the link's name at both ends
	patience            = "60"   // seconds that a ping may take on a slow machine
	countTable, counter = "inet count", "seen"
)

// limit is for what takes a moment on a slow machine.
const limit = time.Minute

// ip runs lines of the ip command in a namespace, in one process, as each start of one costs here.
func ip(t *testing.T, ns string, lines ...string) {
	t.Helper()
	harness.Run(t, "ip", "-n", ns, "-batch", file(t, "lines", strings.Join(lines, "\n")+"\n"))
}

// in runs a line's words in a namespace.
func in(t *testing.T, ns, line string) string {
	t.Helper()
	return harness.Run(t, "ip", append([]string{"netns", "exec", ns}, strings.Fields(line)...)...)
}

// pair makes two namespaces with a wire between them, which carries both families.
func pair(t *testing.T) (a, b string) {
	t.Helper()
	a, b = harness.Netns(t), harness.Netns(t)
	join(t, a, wire, b, wire)
	for _, end := range [][]string{{a, left, left6}, {b, right, right6}} {
		ip(t, end[0], "addr add "+end[1]+"/24 dev "+wire, "addr add "+end[2]+"/64 nodad dev "+wire)
	}
	return a, b
}

// join makes a link between two namespaces, up at both ends.
func join(t *testing.T, a, nameA, b, nameB string) {
	t.Helper()
	ip(t, a, fmt.Sprintf("link add %s type veth peer name %s netns %s", nameA, nameB, b), "link set up dev "+nameA)
	ip(t, b, "link set up dev "+nameB)
}

// count counts in a namespace what comes in on the wire and matches.
func count(t *testing.T, ns, match string) {
	t.Helper()
	rules := fmt.Sprintf("table %s {\n counter %s { }\n chain in { type filter hook input priority -400; iifname %s %s counter name %s; }\n}\n",
		countTable, counter, wire, match, counter)
	in(t, ns, "nft -f "+file(t, "count.nft", rules))
}

var packets = regexp.MustCompile(`packets (\d+)`)

// seen is what count has counted.
func seen(t *testing.T, ns string) int {
	t.Helper()
	return firstNumber(t, packets, in(t, ns, "nft list counter "+countTable+" "+counter))
}

func firstNumber(t *testing.T, pattern *regexp.Regexp, text string) int {
	t.Helper()
	found := pattern.FindStringSubmatch(text)
	if found == nil {
		t.Fatalf("no %s in:\n%s", pattern, text)
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// file writes a file that ends with the test.
func file(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestTunnelsCarryTrafficAndShowOnTheWire(t *testing.T) {
	for _, c := range []struct {
		name string
		// The device at either end: %[1]s is the end's own address on the wire, %[2]s the other's.
		kind  string
		outer string // family of the wire's addresses: 4 or 6
		inner string // family of what runs through
		match string // what is on the wire, in nft's words
	}{
		{"ipip", "ipip local %[1]s remote %[2]s", "4", "4", "meta nfproto ipv4 meta l4proto 4"},
		{"ip6tnl with IPv4 inside", "ip6tnl mode ipip6 local %[1]s remote %[2]s", "6", "4", "meta nfproto ipv6 meta l4proto 4"},
		{"ip6tnl with IPv6 inside", "ip6tnl mode ip6ip6 local %[1]s remote %[2]s", "6", "6", "meta nfproto ipv6 meta l4proto 41"},
		{"sit", "sit local %[1]s remote %[2]s", "4", "6", "meta nfproto ipv4 meta l4proto 41"},
		{"geneve", "geneve id 7 remote %[2]s", "4", "4", "udp dport 6081"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := pair(t)
			ends := []string{left, right}
			if c.outer == "6" {
				ends = []string{left6, right6}
			}
			ip(t, a, "link add through type "+fmt.Sprintf(c.kind, ends[0], ends[1]))
			ip(t, b, "link add through type "+fmt.Sprintf(c.kind, ends[1], ends[0]))
			count(t, b, c.match)
			through(t, a, b, c.inner)
			if n := seen(t, b); n < 3 {
				t.Errorf("3 pings through %s, %d packets of %q on the wire", c.name, n, c.match)
			}
		})
	}
}

// through brings the device of that name up at both ends, and sends three pings through it.
func through(t *testing.T, a, b, family string) {
	t.Helper()
	for _, end := range [][]string{{a, inLeft, inLeft6}, {b, inRight, inRight6}} {
		addr := end[1] + "/24"
		if family == "6" {
			addr = end[2] + "/64 nodad"
		}
		ip(t, end[0], "link set up dev through", "addr add "+addr+" dev through")
	}
	to := inRight
	if family == "6" {
		to = inRight6
	}
	in(t, a, "ping -n -i 0.2 -c 3 -w "+patience+" "+to)
}

func TestWireGuardCarriesTraffic(t *testing.T) {
	a, b := pair(t)
	type end struct{ ns, addr, key, file string }
	ends := []end{{ns: a, addr: left}, {ns: b, addr: right}}
	for i := range ends {
		key := harness.Run(t, "wg", "genkey")
		ends[i].file = file(t, "key", key)
		ends[i].key = strings.TrimSpace(harness.Run(t, "sh", "-c", "wg pubkey <"+ends[i].file))
	}
	for i, e := range ends {
		peer := ends[1-i]
		ip(t, e.ns, "link add through type wireguard")
		in(t, e.ns, fmt.Sprintf("wg set through listen-port 51820 private-key %s peer %s endpoint %s:51820 allowed-ips 10.9.0.0/24",
			e.file, peer.key, peer.addr))
	}
	count(t, b, "udp dport 51820")
	through(t, a, b, "4")
	if n := seen(t, b); n < 3 {
		t.Errorf("3 pings through wireguard, %d packets of it on the wire", n)
	}
}

func TestESPWithAEADCarriesTraffic(t *testing.T) {
	a, b := pair(t)
	const key = "0x00112233445566778899aabbccddeeff01020304" // of a test; the last four bytes are the salt
	for _, ns := range []string{a, b} {
		var lines []string
		for _, way := range []struct{ src, dst, spi, dir string }{
			{left, right, "0x101", map[string]string{a: "out", b: "in"}[ns]},
			{right, left, "0x102", map[string]string{a: "in", b: "out"}[ns]},
		} {
			lines = append(lines,
				fmt.Sprintf("xfrm state add src %s dst %s proto esp spi %s reqid 1 mode transport aead rfc4106(gcm(aes)) %s 128",
					way.src, way.dst, way.spi, key),
				fmt.Sprintf("xfrm policy add src %s dst %s dir %s tmpl src %s dst %s proto esp reqid 1 mode transport",
					way.src, way.dst, way.dir, way.src, way.dst))
		}
		ip(t, ns, lines...)
	}
	count(t, b, "meta l4proto esp")
	in(t, a, "ping -n -i 0.2 -c 3 -w "+patience+" "+right)
	if n := seen(t, b); n < 3 {
		t.Errorf("3 pings under ESP, %d packets of it on the wire", n)
	}
}

func TestVRFKeepsEqualAddressesApart(t *testing.T) {
	// Both neighbours have the same address; the VRF says which one answers.
	mid := harness.Netns(t)
	for i, color := range []string{"red", "blue"} {
		ns := harness.Netns(t)
		join(t, mid, "to-"+color, ns, wire)
		ip(t, mid,
			fmt.Sprintf("link add %s type vrf table %d", color, 10+i),
			"link set up dev "+color,
			"link set to-"+color+" master "+color,
			"addr add "+left+"/24 dev to-"+color)
		ip(t, ns, "addr add "+right+"/24 dev "+wire)
		count(t, ns, "meta l4proto icmp")
		in(t, mid, "ping -n -I "+color+" -i 0.2 -c 3 -w "+patience+" "+right)
		if n := seen(t, ns); n < 3 {
			t.Errorf("3 pings in VRF %s, %d came to its neighbour", color, n)
		}
	}
	if routes := in(t, mid, "ip route show"); routes != "" {
		t.Errorf("the main table has routes of the VRFs:\n%s", routes)
	}
}

func TestNetemDelays(t *testing.T) {
	a, _ := pair(t)
	in(t, a, "tc qdisc add dev "+wire+" root netem delay 300ms")
	out := in(t, a, "ping -n -c 2 -w "+patience+" "+right)
	if ms := firstNumber(t, regexp.MustCompile(`min/avg/max/mdev = (\d+)`), out); ms < 300 {
		t.Errorf("netem delays by 300 ms; the fastest ping took %d ms", ms)
	}
}

func TestFlowtableTakesFlowsPastTheForwardChain(t *testing.T) {
	client, router, server := harness.Netns(t), harness.Netns(t), harness.Netns(t)
	join(t, client, wire, router, "to-client")
	join(t, server, wire, router, "to-server")
	for _, a := range [][]string{
		{client, inLeft, wire},
		{router, "10.9.0.254", "to-client"},
		{router, "10.8.0.254", "to-server"},
		{server, "10.8.0.2", wire},
	} {
		ip(t, a[0], "addr add "+a[1]+"/24 dev "+a[2])
	}
	ip(t, client, "route add default via 10.9.0.254")
	ip(t, server, "route add default via 10.8.0.254")
	in(t, router, "sysctl -qw net.ipv4.ip_forward=1")
	in(t, router, "nft -f "+file(t, "flow.nft", `
table `+countTable+` {
	counter `+counter+` { }
	flowtable fast { hook ingress priority 0; devices = { to-client, to-server }; }
	chain forward {
		type filter hook forward priority 0;
		counter name `+counter+`
		meta l4proto tcp flow add @fast
	}
}
`))
	harness.Start(t, "ip", "netns", "exec", server, "iperf3", "-s", "-1")
	harness.Wait(t, limit, "iperf3 listens", func() bool {
		return strings.Contains(in(t, server, "ss -Hltn"), ":5201")
	})
	in(t, client, "iperf3 -c 10.8.0.2 -n 32M")
	text := in(t, router, "cat /sys/class/net/to-client/statistics/rx_packets")
	came := firstNumber(t, regexp.MustCompile(`(\d+)`), text)
	if n := seen(t, router); n == 0 || n*2 > came {
		t.Errorf("the forward chain saw %d packets, the link %d: want less than half of them", n, came)
	}
}
