// Package cni measures what ADD and DEL cost: Heddle beside the chain that the CNI project ships, in
// turns, in one run, and what the kernel alone takes.
package cni

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// Report is all that a run found.
type Report struct {
	Kernel  []step  `json:"kernel"`
	Batches []batch `json:"batches"`
	Filled  []batch `json:"filled"` // nodes filled up, fillRate ADDs a second
}

// A node is filled with what a kubelet takes, at a rate that few schedulers reach.
const (
	fillPods = 110
	fillRate = 20
)

// Options are what Main's flags say; a caller that starts an agent itself fills them in.
type Options struct {
	Rounds, Calls, AtATime int
	Reference              string // folder of the reference plugins; built there when absent
	JSON                   string // file; empty for none
	Bin                    string // folder of heddle and heddle-cni
}

// Main runs the benchmark and prints a table to out.
func Main(ctx context.Context, args []string, out io.Writer) error {
	var o Options
	fs := flag.NewFlagSet("cni", flag.ContinueOnError)
	short := o.Flags(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *short {
		o.Rounds, o.Calls = 1, 20
	}
	return Run(ctx, o, out)
}

// Flags defines the flags that fill o.
func (o *Options) Flags(fs *flag.FlagSet) (short *bool) {
	fs.IntVar(&o.Rounds, "rounds", 5, "how often each chain has its turn")
	fs.IntVar(&o.Calls, "calls", 40, "ADDs, and DELs, in a turn")
	fs.IntVar(&o.AtATime, "at-a-time", 10, "calls at a time in the second half of a turn")
	fs.StringVar(&o.Reference, "ref-plugin-dir", "bin/refchain", "the reference plugins; built there when they are missing")
	fs.StringVar(&o.JSON, "json", "bin/bench-cni.json", "where all figures go; empty for nowhere")
	fs.StringVar(&o.Bin, "bin", "bin", "folder of heddle and heddle-cni")
	return fs.Bool("short", false, "one turn of 20 calls, for a look")
}

// Run runs the benchmark.
func Run(ctx context.Context, o Options, out io.Writer) error {
	if err := buildReference(ctx, o.Reference); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "heddle-bench-cni-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	plugins, err := filepath.Abs(o.Reference)
	if err != nil {
		return err
	}
	var chains []*chain
	defer func() {
		for _, c := range chains[:min(len(chains), 2)] { // the node closes Heddle's
			c.close()
		}
	}()
	for i, portmap := range []bool{false, true} {
		c, err := reference(filepath.Join(dir, fmt.Sprint(i)), plugins, portmap)
		if err != nil {
			return err
		}
		chains = append(chains, c)
	}
	own := filepath.Join(dir, "heddle")
	if err := os.Mkdir(own, 0o700); err != nil {
		return err
	}
	n, err := startNode(ctx, o.Bin, own)
	if err != nil {
		return err
	}
	defer n.close()
	b, err := os.ReadFile(n.conflist)
	if err != nil {
		return err
	}
	c, err := newChain("heddle", b, o.Bin, dir)
	if err != nil {
		return err
	}
	c.node, c.agent = n.space, n.agentPID
	chains = append(chains, c)

	var r Report
	if r.Kernel, err = kernelSteps(o.Calls); err != nil {
		return err
	}
	for _, c := range chains { // files in the cache, the bridge made
		if _, err := c.run(ctx, 0, 2, 1); err != nil {
			return err
		}
	}
	for round := range o.Rounds {
		for _, atATime := range []int{1, o.AtATime} {
			for k := range chains {
				b, err := chains[(k+round)%len(chains)].run(ctx, round, o.Calls, atATime)
				if err != nil {
					return err
				}
				r.Batches = append(r.Batches, b)
			}
		}
		_, _ = fmt.Fprintf(os.Stderr, "round %d of %d done\n", round+1, o.Rounds)
	}
	for k := range chains {
		b, err := chains[k].paced(ctx, 0, fillPods, fillPods, time.Second/fillRate)
		if err != nil {
			return err
		}
		r.Filled = append(r.Filled, b)
	}
	r.print(out, chains, o)
	if o.JSON == "" {
		return nil
	}
	b, err = json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(o.JSON, append(b, '\n'), 0o644)
}

// buildReference builds the reference plugins from their own module, unless they are there.
func buildReference(ctx context.Context, dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "portmap")); err == nil {
		return nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/", "tool")
	cmd.Dir, cmd.Env = "test/bench/refchain", append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the reference plugins: %w: %s", err, out)
	}
	return nil
}

func quantile(v []time.Duration, q float64) time.Duration {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return v[min(len(v)-1, int(q*float64(len(v))))]
}
