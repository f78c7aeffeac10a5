package filter

import (
	_ "embed" // the skeleton
	"strings"
	"text/template"

	"github.com/heddle-net/heddle/internal/policy"
)

// TableName is the name of both tables, in family inet and in family bridge.
const TableName = "heddle-policy"

// skeletonText is a text/template. What it expands to is the same on every node; all churn is elements.
//
//go:embed skeleton.nft
var skeletonText string

// hook is one host hook in the skeleton's words.
type hook struct {
	Hook   policy.Hook
	Name   string
	Link   string   // the interface by which host endpoints are found
	Group  string   // the same interface's group
	Remote string   // chain that finds the number of the remote end
	Point  string   // where its packets are said to be logged
	First  []string // rules before the judgement
	// Bases are the base chains that it needs: see locals.chains.
	Bases []string
}

// Packets to and from fail-safe ports pass, by either end where answers are not known as such.
const (
	safeInDst  = "th dport . meta l4proto @failsafe_in return"
	safeInSrc  = "th sport . meta l4proto @failsafe_in return"
	safeOutDst = "th dport . meta l4proto @failsafe_out return"
	safeOutSrc = "th sport . meta l4proto @failsafe_out return"
)

// hooks are the host hooks, in policy.Hook's order from HostInput on.
var hooks = []hook{
	{policy.HostInput, "input", "iifname", "iifgroup", "source", "input", []string{safeInDst}, []string{"input"}},
	{policy.HostOutput, "output", "oifname", "oifgroup", "destination", "output", []string{safeOutDst}, []string{"output"}},
	{policy.HostForwardIn, "forward_in", "iifname", "iifgroup", "source", "forward", nil, []string{"forward"}},
	{policy.HostForwardOut, "forward_out", "oifname", "oifgroup", "destination", "forward", nil, []string{"forward"}},
	{policy.HostPreDNATIn, "prednat_in", "iifname", "iifgroup", "source", "prerouting", []string{safeInDst}, []string{"prednat", "input", "forward"}},
	{policy.HostUntrackedIn, "untracked_in", "iifname", "iifgroup", "source", "untracked_in", []string{safeInDst, safeOutSrc}, []string{"untracked_in", "input", "forward"}},
	{policy.HostUntrackedOut, "untracked_out", "oifname", "oifgroup", "destination", "untracked_out", []string{safeOutDst, safeInSrc}, []string{"untracked_out", "output"}},
}

// Skeleton is both tables in nft's own words, without elements.
func Skeleton() string {
	var b strings.Builder
	t := template.Must(template.New("skeleton").Parse(skeletonText))
	err := t.Execute(&b, map[string]any{
		"Table":    TableName,
		"Families": families,
		"Hooks":    hooks,
		"Points":   points,
		"Ported":   []string{"tcp", "udp", "icmp", "ipv6-icmp", "sctp", "dccp", "udplite"},
	})
	if err != nil {
		panic(err) // the text is part of the program
	}
	return b.String()
}

// family is what the rules of one family differ in.
type family struct {
	N    int
	IP   string
	Addr string
	Zero string // the address that no packet here has
}

var families = []family{{4, "ip", "ipv4_addr", "0.0.0.0"}, {6, "ip6", "ipv6_addr", "::"}}

// point is where a verdict takes effect: what the log calls it, and what else an allowed packet gets.
type point struct{ Name, Hook, Then string }

// accepted is the priority of packets that host policy allowed before routing: on the way in, and out, no
// other host policy judges them (Calico's order). What is forwarded is judged all the same.
const accepted = "meta priority set ffff:fff1"

var points = []point{
	{"forward", "forward", ""},
	{"input", "input", ""},
	{"output", "output", ""},
	{"prerouting", "prerouting", accepted},
	{"untracked_in", "prerouting", accepted + " notrack accept"},
	{"untracked_out", "output", accepted + " notrack accept"},
}
