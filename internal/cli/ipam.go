package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/dialect/calico"
	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
)

// betweenLooks is how far apart the two looks of `heddle ipam release` are: an ADD, a DEL and the news of either
// take seconds, so that what is wrong at both is no work under way.
const betweenLooks = time.Minute

type openFunc func(context.Context) (store.Store, error)

func ipamCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "ipam", Short: "Look at pools, blocks and addresses, and give back what was lost"}
	open := storeFlags(cmd)
	var runDir, output string
	cmd.PersistentFlags().StringVar(&runDir, "run-dir", config.Default().RunDir, "where the agent's sockets are")
	cmd.PersistentFlags().StringVarP(&output, "output", "o", "text", "text or json")
	books := func(cmd *cobra.Command) (ipam.Books, error) {
		if err := textOrJSON(cmd, output); err != nil {
			return ipam.Books{}, err
		}
		return readBooks(cmd.Context(), open, runDir)
	}
	cmd.AddCommand(ipamShowCmd(books, &output), ipamCheckCmd(books, &output), ipamReleaseCmd(books, open, &runDir, &output))
	return cmd
}

// readBooks reads the store, and asks the agent of this node, if one runs here.
func readBooks(ctx context.Context, open openFunc, runDir string) (b ipam.Books, err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	s, err := open(ctx)
	if err != nil {
		return b, err
	}
	defer func() { _ = s.Close() }()
	// The agent before the store: of what it does meanwhile, the store knows.
	var local ipam.Local
	if err := ask(ctx, runDir, "/ipam", &local); err == nil {
		b.Local = &local
	}
	var settings []model.Setting
	for _, kind := range []model.Kind{model.KindPool, model.KindSetting, model.KindNode, model.KindBlock, model.KindEndpoint} {
		items, _, err := s.List(ctx, kind)
		if errors.Is(err, store.ErrUnsupported) {
			continue
		}
		if err != nil {
			return b, err
		}
		for _, i := range items {
			switch o := i.Object.(type) {
			case *model.Pool:
				b.Pools = append(b.Pools, *o)
			case *model.Setting:
				settings = append(settings, *o)
			case *model.Node:
				b.Nodes = append(b.Nodes, *o)
			case *model.Block:
				b.Blocks = append(b.Blocks, *o)
			case *model.Endpoint:
				b.Endpoints = append(b.Endpoints, *o)
			}
		}
	}
	if b.Local != nil {
		b.Pools = b.Local.Pools // also those in a dialect's words
	} else {
		b.Pools = withWritten(b.Pools, settings)
	}
	slices.SortFunc(b.Blocks, func(x, y model.Block) int { return x.CIDR.Compare(y.CIDR) })
	return b, nil
}

// withWritten are the pools that are filed, and those in Calico's words of other ranges: of the same range, the filed one
// has the blocks.
func withWritten(filed []model.Pool, settings []model.Setting) []model.Pool {
	net, _ := calico.Network(settings) // its problems are for `heddle status`
	for i := range net.Pools {
		if p := net.Pools[i]; !slices.ContainsFunc(filed, func(f model.Pool) bool { return f.CIDR == p.CIDR }) {
			filed = append(filed, p)
		}
	}
	return filed
}

func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func ipamShowCmd(books func(*cobra.Command) (ipam.Books, error), output *string) *cobra.Command {
	var block, ip string
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show pools, nodes' blocks and how full they are, or one block or address",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			b, err := books(cmd)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			switch {
			case block != "":
				p, err := netip.ParsePrefix(block)
				if err != nil {
					return &model.FieldError{Noun: "ipam show", Field: "--block", Value: block, Want: "a block such as 10.244.0.0/26"}
				}
				return showBlock(out, &b, p, *output)
			case ip != "":
				a, err := netip.ParseAddr(ip)
				if err != nil {
					return &model.FieldError{Noun: "ipam show", Field: "--ip", Value: ip, Want: "an address"}
				}
				return showAddress(out, &b, a.Unmap(), *output)
			case *output == "json":
				return printJSON(out, map[string]any{"pools": b.Pools, "blocks": blockLines(&b)})
			}
			if err := showPools(out, &b); err != nil {
				return err
			}
			_, _ = fmt.Fprintln(out)
			return showBlocks(out, &b)
		},
	}
	cmd.Flags().StringVar(&block, "block", "", "the addresses of this block, and whose they are")
	cmd.Flags().StringVar(&ip, "ip", "", "whose this address is")
	return cmd
}

// blockLine is a block, and how it is used: as the store knows, and on its own node as that itself does.
type blockLine struct {
	model.Block
	Used    int     `json:"used"`
	Cooling *int    `json:"cooling,omitempty"`
	Free    *uint64 `json:"free,omitempty"`
}

func blockLines(b *ipam.Books) []blockLine {
	lines := make([]blockLine, 0, len(b.Blocks))
	for _, blk := range b.Blocks {
		l := blockLine{Block: blk}
		for i := range b.Endpoints {
			for _, a := range b.Endpoints[i].Addresses {
				if blk.CIDR.Contains(a) {
					l.Used++
				}
			}
		}
		if b.Local != nil && blk.Node == b.Local.Node {
			for _, u := range b.Local.Use {
				if u.Block == blk.CIDR {
					l.Used, l.Cooling, l.Free = u.Used, &u.Cooling, &u.Free
				}
			}
		}
		lines = append(lines, l)
	}
	return lines
}

// many is a number of addresses or blocks; what fits into no table is a power of two.
func many(n uint64) string {
	if n >= 1<<32 {
		return "many"
	}
	return fmt.Sprint(n)
}

func showPools(out io.Writer, b *ipam.Books) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "POOL\tRANGE\tBLOCKS\tIN USE\tSETTINGS")
	for i := range b.Pools {
		p := &b.Pools[i]
		taken, used := 0, 0
		for _, l := range blockLines(b) {
			if l.Pool == p.Name {
				taken++
				used += l.Used
			}
		}
		all := uint64(1) << min(p.BlockSize-p.CIDR.Bits(), 62)
		_, _ = fmt.Fprintf(w, "%s\t%s\t%d of %s /%d\t%d\t%s\n", p.Name, p.CIDR, taken, many(all), p.BlockSize, used, poolSettings(p))
	}
	return w.Flush()
}

func poolSettings(p *model.Pool) string {
	var s []string
	add := func(is bool, text string) {
		if is {
			s = append(s, text)
		}
	}
	add(p.Disabled, "disabled")
	add(p.Manual, "manual")
	add(len(p.Uses) > 0, fmt.Sprintf("for %v", p.Uses))
	add(p.NodeSelector != "", "nodes "+p.NodeSelector)
	add(p.NamespaceSelector != "", "namespaces "+p.NamespaceSelector)
	s = append(s, fmt.Sprintf("%d per node", p.Blocks()))
	return strings.Join(s, "; ")
}

func showBlocks(out io.Writer, b *ipam.Books) error {
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "NODE\tBLOCK\tPOOL\tIN USE\tCOOLING\tFREE")
	lines := blockLines(b)
	slices.SortStableFunc(lines, func(x, y blockLine) int { return strings.Compare(x.Node, y.Node) })
	for _, l := range lines {
		cooling, free := "", ""
		if l.Cooling != nil {
			cooling, free = fmt.Sprint(*l.Cooling), many(*l.Free)
		}
		pool := l.Pool
		switch {
		case l.Lender != "":
			pool += ", lent by " + l.Lender
		case l.For != "":
			pool += ", asked for by " + l.For
		}
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\n", l.Node, l.CIDR, pool, l.Used, cooling, free)
	}
	return w.Flush()
}

// addressLine is an address in use.
type addressLine struct {
	Address  netip.Addr `json:"address"`
	Workload string     `json:"workload"`
	Node     string     `json:"node"`
}

// addressLines are the addresses in use that a range holds, sorted.
func addressLines(b *ipam.Books, in netip.Prefix) []addressLine {
	lines := []addressLine{}
	for i := range b.Endpoints {
		e := &b.Endpoints[i]
		name := e.Link
		if e.Name != "" {
			name = e.Namespace + "/" + e.Name
		} else if b.Local != nil && e.Node == b.Local.Node {
			for j := range b.Local.Workloads {
				if w := &b.Local.Workloads[j]; w.HostLink == e.Link {
					name = w.String()
				}
			}
		}
		for _, a := range e.Addresses {
			if in.Contains(a) {
				lines = append(lines, addressLine{a, name, e.Node})
			}
		}
	}
	if b.Local != nil {
		for i := range b.Local.Workloads {
			w := &b.Local.Workloads[i]
			for _, a := range w.Addresses {
				if in.Contains(a) && !slices.ContainsFunc(lines, func(l addressLine) bool { return l.Address == a && l.Node == b.Local.Node }) {
					lines = append(lines, addressLine{a, w.String(), b.Local.Node})
				}
			}
		}
	}
	slices.SortFunc(lines, func(x, y addressLine) int { return x.Address.Compare(y.Address) })
	return lines
}

func showBlock(out io.Writer, b *ipam.Books, block netip.Prefix, output string) error {
	i := slices.IndexFunc(b.Blocks, func(o model.Block) bool { return o.CIDR == block.Masked() })
	if i < 0 {
		return fmt.Errorf("block %s: nobody has it: `heddle ipam show` lists the blocks", block)
	}
	line := blockLines(&ipam.Books{Blocks: b.Blocks[i : i+1], Endpoints: b.Endpoints, Local: b.Local})[0]
	list := addressLines(b, block)
	if output == "json" {
		return printJSON(out, map[string]any{"block": line, "addresses": list})
	}
	_, _ = fmt.Fprintf(out, "block %s of pool %s, node %s: %d in use", line.CIDR, line.Pool, line.Node, line.Used)
	if line.Cooling != nil {
		_, _ = fmt.Fprintf(out, ", %d cooling down, %s free", *line.Cooling, many(*line.Free))
	}
	_, _ = fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, l := range list {
		_, _ = fmt.Fprintf(w, "%s\t%s\n", l.Address, l.Workload)
	}
	return w.Flush()
}

func showAddress(out io.Writer, b *ipam.Books, a netip.Addr, output string) error {
	var pool, block, node string
	for i := range b.Pools {
		if b.Pools[i].CIDR.Contains(a) {
			pool = b.Pools[i].Name
		}
	}
	for _, o := range b.Blocks {
		if o.CIDR.Contains(a) { // sorted: of a block and an address that is lent out of it, the address is later
			block, node = o.CIDR.String(), o.Node
		}
	}
	owners := addressLines(b, netip.PrefixFrom(a, a.BitLen()))
	if output == "json" {
		return printJSON(out, map[string]any{"address": a, "pool": pool, "block": block, "node": node, "owners": owners})
	}
	switch {
	case pool == "":
		_, _ = fmt.Fprintf(out, "%s: in no pool\n", a)
	case block == "":
		_, _ = fmt.Fprintf(out, "%s: in pool %s, in nobody's block\n", a, pool)
	default:
		_, _ = fmt.Fprintf(out, "%s: in pool %s, block %s of node %s\n", a, pool, block, node)
	}
	if len(owners) == 0 {
		_, _ = fmt.Fprintln(out, "nobody has it")
	}
	for _, o := range owners {
		_, _ = fmt.Fprintf(out, "%s on node %s has it\n", o.Workload, o.Node)
	}
	return nil
}
