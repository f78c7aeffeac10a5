// Command bench measures Heddle beside its floors and its peers. `make bench` builds and runs it.
//
//	bench all|cni|datapath|policy [flags]
//
// Flags of `all` go to all parts: only -short and -rounds make sense there.
//
// It needs root and puts everything it makes into namespaces of its own.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/test/bench/cni"
	"github.com/heddle-net/heddle/test/bench/datapath"
	"github.com/heddle-net/heddle/test/bench/load"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		args = []string{"all"}
	}
	switch args[0] {
	case "load": // one end of a test, started by the others
		return load.Main(args[1:])
	case "datapath":
		return datapath.Main(ctx, args[1:], os.Stdout)
	case "policy":
		return datapath.Policy(ctx, args[1:], os.Stdout)
	case "cni":
		return cni.Main(ctx, args[1:], os.Stdout)
	case "all":
		if err := cni.Main(ctx, args[1:], os.Stdout); err != nil {
			return err
		}
		if err := datapath.Main(ctx, args[1:], os.Stdout); err != nil {
			return err
		}
		return datapath.Policy(ctx, args[1:], os.Stdout)
	}
	return fmt.Errorf("%q: want all, cni, datapath or policy", args[0])
}
