package cli

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/peering"
)

// printBGP is the BGP part of the one screen: what is not established first, with the cause in words.
func printBGP(out io.Writer, s *agent.BGPStatus, now time.Time) error {
	if s == nil {
		return nil
	}
	_, _ = fmt.Fprintf(out, "\nbgp  AS %d, router %s, %s; %d announced, %d routes learned", s.ASN, s.RouterID, s.Mode, s.Announced, s.Learned)
	if s.Relearning {
		_, _ = fmt.Fprint(out, "; not all neighbours have told everything yet, learned routes stay")
	}
	_, _ = fmt.Fprintln(out)
	neighbors := slices.Clone(s.Neighbors)
	slices.SortStableFunc(neighbors, func(a, b peering.Status) int { return cmp.Compare(establishedLast(a), establishedLast(b)) })
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for i, n := range neighbors {
		if i == screenPeers {
			_, _ = fmt.Fprintf(w, "  … and %d more: heddle status -o json\n", len(neighbors)-i)
			break
		}
		_, _ = fmt.Fprintf(w, "  %s\t%s\tAS %d\t%s for %s\t%s\t%s\n", n.Address, cmp.Or(n.Node, n.Name), n.RemoteASN, n.State, age(now, n.Since),
			fmt.Sprintf("%d in (%d used), %d out", n.Received, n.Accepted, n.Sent), trouble(n, now))
	}
	return w.Flush()
}

func establishedLast(n peering.Status) int {
	if n.State == peering.Established {
		return 1
	}
	return 0
}

// trouble is what there is to say beside numbers.
func trouble(n peering.Status, now time.Time) string {
	text := ""
	add := func(s string) {
		if text != "" {
			text += "; "
		}
		text += s
	}
	if n.Restarting {
		add("it restarts, its routes are kept")
	}
	if n.Failure != "" {
		add(fmt.Sprintf("last failure %s ago: %s", age(now, n.FailureAt), n.Failure))
	}
	if n.BFD != "" {
		add("bfd " + n.BFD)
	}
	return text
}
