package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/model"
)

// screenPeers and screenWorkloads bound the lists on the one screen; -o json has all.
const (
	screenPeers     = 16
	screenWorkloads = 10
)

func statusCmd() *cobra.Command {
	var runDir, output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show this node on one screen: store, blocks, paths to every peer, workloads, problems",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := textOrJSON(cmd, output); err != nil {
				return err
			}
			var s agent.Status
			if err := ask(cmd.Context(), runDir, "/status", &s); err != nil {
				return err
			}
			if output == "json" {
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(s)
			}
			return printStatus(cmd.OutOrStdout(), s, time.Now())
		},
	}
	cmd.Flags().StringVar(&runDir, "run-dir", "/run/heddle", "directory of the agent's socket")
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

// printStatus writes the one screen.
func printStatus(out io.Writer, s agent.Status, now time.Time) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	p := func(format string, args ...any) { _, _ = fmt.Fprintf(w, format+"\n", args...) }

	state := "ready"
	if !s.Ready {
		state = "NOT READY: " + s.Reason
	}
	p("node\t%s\t%s\t%s", s.Node, join(s.Address4, s.Address6), state)
	p("agent\t%s\tup %s, process %d\tlast pass %s ago took %s, changed %d", s.Version, age(now, s.Started), s.PID,
		age(now, s.Pass.At), s.Pass.Duration.Round(100*time.Microsecond), s.Pass.Changed)
	conn := "connected"
	if !s.Store.Connected {
		conn = "NOT CONNECTED"
	}
	if !s.Store.Since.IsZero() {
		conn += " for " + age(now, s.Store.Since)
	}
	p("store\t%s\t%s\t%s", s.Store.Type, strings.Join(s.Store.Endpoints, " "), conn)
	for _, pool := range s.Pools {
		p("pool\t%s\t%s, %s\t%s", pool.Name, pool.CIDR, shares(pool), carried(pool))
	}
	for _, b := range s.Blocks {
		p("block\t%s\t%d in use\t", b.CIDR, b.Used)
	}
	known := ""
	if !s.Policy.Known {
		known = "NOT KNOWN YET"
	}
	p("policy\t%d policies\t%d local ends policed, %d map entries\t%s", s.Policy.Policies, s.Policy.Policed, s.Policy.Entries, known)
	if err := w.Flush(); err != nil {
		return err
	}
	if err := printPeers(out, s.Peers); err != nil {
		return err
	}
	if err := printBGP(out, s.BGP, now); err != nil {
		return err
	}
	if err := printWorkloads(out, s, now); err != nil {
		return err
	}
	if len(s.Problems) == 0 {
		_, err := fmt.Fprintln(out, "\nno problems")
		return err
	}
	_, _ = fmt.Fprintf(out, "\n%d problem(s)\n", len(s.Problems))
	for i, pr := range s.Problems {
		if i == screenWorkloads {
			_, err := fmt.Fprintf(out, "  … and %d more: heddle status -o json\n", len(s.Problems)-i)
			return err
		}
		if _, err := fmt.Fprintf(out, "  %s  %s\n      try: %s\n", pr.Severity, pr, pr.Next); err != nil {
			return err
		}
	}
	return nil
}

// shares says what nodes have of a pool.
func shares(p model.Pool) string {
	if p.Blocks() == 1 {
		return fmt.Sprintf("a /%d per node", p.BlockSize)
	}
	return fmt.Sprintf("/%d blocks, up to %d per node", p.BlockSize, p.Blocks())
}

func carried(p model.Pool) string {
	text := string(p.Path)
	switch p.Path {
	case model.PathVXLAN:
		text += fmt.Sprintf(" %s, VNI %d, UDP %d", p.Encap, p.VXLAN.VNI, p.VXLAN.Port)
	case model.PathIPIP:
		text += " " + string(p.Encap)
	}
	if p.Masquerade {
		text += ", masqueraded"
	}
	if p.Disabled {
		text += ", disabled"
	}
	return text
}

// printPeers puts what is not up first, and counts what it leaves out.
func printPeers(out io.Writer, peers []agent.PeerStatus) error {
	counts := map[string]int{}
	for _, p := range peers {
		counts[strings.TrimSpace(string(p.State)+" "+pathName(p.Path))]++
	}
	_, _ = fmt.Fprintf(out, "\npeers  %d block(s)", len(peers))
	keys := make([]string, 0, len(counts))
	for k := range counts {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		_, _ = fmt.Fprintf(out, ", %d %s", counts[k], k)
	}
	_, _ = fmt.Fprintln(out)
	peers = slices.Clone(peers)
	slices.SortStableFunc(peers, func(a, b agent.PeerStatus) int {
		return cmp.Compare(upLast(a.State), upLast(b.State))
	})
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for i, p := range peers {
		if i == screenPeers {
			_, _ = fmt.Fprintf(w, "  … and %d more: heddle status -o json\n", len(peers)-i)
			break
		}
		state := string(p.State)
		if p.LostFor > 0 {
			state += " for " + p.LostFor.Round(time.Second).String()
		}
		path, via, mtu := cmp.Or(pathName(p.Path), "-"), "", ""
		if path != "-" {
			via, mtu = "via "+join(p.Via), fmt.Sprintf("MTU %d", p.MTU)
		}
		_, _ = fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Node, p.Block, path, via, mtu, state, p.Reason)
	}
	return w.Flush()
}

// pathName is empty where nothing is carried.
func pathName(p model.Path) string {
	if p == model.PathNone {
		return ""
	}
	return string(p)
}

func upLast(s agent.PeerState) int {
	if s == agent.PeerUp || s == agent.PeerNotCarried {
		return 1
	}
	return 0
}

func printWorkloads(out io.Writer, s agent.Status, now time.Time) error {
	_, _ = fmt.Fprintf(out, "\nworkloads  %d, new ones %s with MTU %d\n", len(s.Workloads), s.Attachment, s.MTU)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for i, wl := range s.Workloads {
		if i == screenWorkloads {
			_, _ = fmt.Fprintf(w, "  … and %d more: heddle status -o json\n", len(s.Workloads)-i)
			break
		}
		_, _ = fmt.Fprintf(w, "  %s\t%s\t%s\t%s\tfor %s\n", wl.String(), join(wl.Addresses...), wl.IfName, wl.HostLink, age(now, wl.Created))
	}
	return w.Flush()
}

func age(now, then time.Time) string {
	if then.IsZero() {
		return "-"
	}
	d := now.Sub(then)
	if d < time.Minute {
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

func join(addrs ...netip.Addr) string {
	var out []string
	for _, a := range addrs {
		if a.IsValid() {
			out = append(out, a.String())
		}
	}
	return words(out)
}

func words(s []string) string {
	if len(s) == 0 {
		return "-"
	}
	return strings.Join(s, " ")
}
