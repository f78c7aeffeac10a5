// Command kubelab brings up a real Kubernetes in namespaces of this machine and takes it down again; see
// test/kube/README.md.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/heddle-net/heddle/test/kube/lab"
)

func main() {
	lab.Init()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	err := command().ExecuteContext(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "kubelab:", err)
		os.Exit(1)
	}
}

func command() *cobra.Command {
	var name string
	root := &cobra.Command{
		Use:          "kubelab",
		Short:        "A real Kubernetes in namespaces of this machine",
		SilenceUsage: true, SilenceErrors: true,
	}
	root.PersistentFlags().StringVar(&name, "name", lab.Default().Name, "the lab's `name`")
	root.AddCommand(up(&name), suites(&name),
		&cobra.Command{Use: "down", Short: "Take the lab down", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
			l, err := lab.Load(name)
			if err != nil {
				return err
			}
			return l.Down()
		}},
		within("kubectl ARG...", "kubectl as the lab's administrator", &name, func(args []string) (string, []string) {
			return "cp", append([]string{"kubectl"}, args...)
		}),
		within("node N COMMAND...", "Run a command in node nN (0: beside the API server)", &name, func(args []string) (string, []string) {
			if len(args) == 0 || args[0] == "0" {
				return "cp", args[min(1, len(args)):]
			}
			return "n" + strings.TrimPrefix(args[0], "n"), args[1:]
		}),
		&cobra.Command{Use: "load IMAGE.TAR", Short: "Give every node an image", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			l, err := lab.Load(name)
			if err != nil {
				return err
			}
			return l.Load(c.Context(), args[0])
		}},
		&cobra.Command{Use: "logs COMPONENT", Short: "Print a component's log (kube-apiserver, n1-kubelet, …)", Args: cobra.ExactArgs(1), RunE: func(_ *cobra.Command, args []string) error {
			l, err := lab.Load(name)
			if err != nil {
				return err
			}
			text, err := os.ReadFile(l.Log(filepath.Base(args[0])))
			if err == nil {
				_, err = os.Stdout.Write(text)
			}
			return err
		}})
	return root
}

func up(name *string) *cobra.Command {
	spec := lab.Default()
	c := &cobra.Command{Use: "up", Short: "Bring the lab up and leave it running", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		spec.Name = *name
		spec.Progress = func(at time.Duration, step string) { fmt.Printf("%6.1fs  %s\n", at.Seconds(), step) }
		ctx, cancel := context.WithTimeout(c.Context(), 8*time.Minute)
		defer cancel()
		_, err := lab.Up(ctx, spec)
		return err
	}}
	f := c.Flags()
	f.StringVar(&spec.Bin, "bin", os.Getenv("HEDDLE_KUBE_BIN"), "the `folder` that build/kube printed")
	f.StringVar(&spec.Programs, "programs", "bin", "the `folder` with heddle and heddle-cni")
	f.StringVar(&spec.Manifest, "manifest", "deploy/heddle.yaml", "what installs Heddle: a `file`, or a folder for kustomize")
	f.IntVar(&spec.Nodes, "nodes", spec.Nodes, "how many nodes")
	f.BoolVar(&spec.DualStack, "dual-stack", false, "IPv6 beside IPv4")
	f.StringVar(&spec.Proxy, "proxy", spec.Proxy, "kube-proxy's `mode`: nftables or iptables")
	f.StringVar(&spec.Network, "network", spec.Network, "heddle, reference (bridge, host-local, portmap) or none")
	f.StringVar(&spec.Backend, "backend", "vxlan", "Heddle's backend in Flannel's words: vxlan or host-gw")
	return c
}

// within is a command in a machine of the lab, with this terminal; its exit status becomes ours.
func within(use, short string, name *string, where func(args []string) (machine string, argv []string)) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, DisableFlagParsing: true, RunE: func(c *cobra.Command, args []string) error {
		// Flags belong to the command; ours come from the environment of `make` targets by --name first.
		if len(args) > 1 && args[0] == "--name" {
			*name, args = args[1], args[2:]
		}
		l, err := lab.Load(*name)
		if err != nil {
			return err
		}
		machine, argv := where(args)
		if len(argv) == 0 {
			return fmt.Errorf("%s: no command", c.Use)
		}
		cmd, err := l.Command(c.Context(), machine, argv...)
		if err != nil {
			return err
		}
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		err = cmd.Run()
		if exit, ok := err.(*exec.ExitError); ok && exit.Exited() { //nolint:errorlint // Run wraps nothing
			os.Exit(exit.ExitCode())
		}
		return err
	}}
}
