package cli

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
)

func labExecCmd(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "exec NODE[/POD]|NAMESPACE/POD -- COMMAND…",
		Short: "Run a command on a machine or in a pod: n1, n1/p1, dev/pod1, router, outside",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) < 2 {
				return errors.New("lab exec: want a place and a command: heddle lab exec n1 -- ip route")
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := openLab(*name)
			if err != nil {
				return err
			}
			return l.Become(args[0], args[1:]...)
		},
	}
}

func labCaptureCmd(name *string) *cobra.Command {
	var link string
	cmd := &cobra.Command{
		Use:   "capture NODE[/POD] [FILTER…]",
		Short: "Show packets with tcpdump: on the uplink of a node, or in a pod",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			l, err := openLab(*name)
			if err != nil {
				return err
			}
			return l.Become(args[0], slices.Concat([]string{"tcpdump", "-n", "-l", "-i", link}, args[1:])...)
		},
	}
	cmd.Flags().StringVarP(&link, "interface", "i", "eth0", "the interface; cni0 and flannel.1 show the inside")
	return cmd
}

func labPingCmd(name *string) *cobra.Command {
	var family string
	cmd := &cobra.Command{
		Use:   "ping",
		Short: "Ping between all pods, and show the path taken per pair of nodes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			families, ok := map[string][]model.Family{
				"4": {model.IPv4}, "6": {model.IPv6}, "both": {model.IPv4, model.IPv6},
			}[family]
			if !ok {
				return &model.FieldError{Noun: "lab ping", Field: "--family", Value: family, Want: "4, 6 or both"}
			}
			l, err := openLab(*name)
			if err != nil {
				return err
			}
			return labPing(cmd, l, families)
		},
	}
	cmd.Flags().StringVar(&family, "family", "both", "4, 6 or both")
	return cmd
}

// labPing prints the matrix; its error says how many pings failed.
func labPing(cmd *cobra.Command, l *lab.Lab, families []model.Family) error {
	m, err := l.Ping(cmd.Context(), families...)
	if err != nil {
		return err
	}
	if err := m.Print(cmd.OutOrStdout()); err != nil {
		return err
	}
	if len(m.Pings) == 0 {
		return errors.New("lab ping: nothing to ping: want at least two pods: heddle lab pod add NODE")
	}
	if !m.OK() {
		return exitError{1}
	}
	return nil
}

func labPodCmd(name *string) *cobra.Command {
	cmd := &cobra.Command{Use: "pod", Short: "Add and delete pods by CNI calls"}
	var labels []string
	add := &cobra.Command{
		Use:   "add NODE [NAME|NAMESPACE/NAME]",
		Short: "Add a pod",
		Args:  cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLab(*name)
			if err != nil {
				return err
			}
			pod, err := l.AddPod(cmd.Context(), args[0], slices.Concat(args[1:], []string{""})[0], labels...)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s/%s %v\n", pod.Node, pod.Name, pod.Addresses)
			return err
		},
	}
	add.Flags().StringArrayVarP(&labels, "label", "l", nil, "a label, KEY=VALUE, given to the workload at ADD")
	cmd.AddCommand(add, &cobra.Command{
		Use:   "del NAME…",
		Short: "Delete pods",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLab(*name)
			if err != nil {
				return err
			}
			var errs []error
			for _, a := range args {
				errs = append(errs, l.DelPod(cmd.Context(), a))
			}
			return errors.Join(errs...)
		},
	})
	return cmd
}

func labNetConfCmd(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "net-conf FILE|-|MODE",
		Short: "Replace net-conf.json on all nodes of a running lab (MODE: host-gw, vxlan, vxlan+direct)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLab(*name)
			if err != nil {
				return err
			}
			text, err := readNetConf(args[0], cmd.InOrStdin())
			if err != nil {
				return err
			}
			return l.SetNetConf(cmd.Context(), text)
		},
	}
}

// The hidden commands are what a lab runs of this same binary.

func labMachineCmd() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:    "machine",
		Short:  "Be the init of a lab's machine",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return lab.RunMachine(cmd.Context(), dir, os.Stdin, os.Stdout)
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "the machine's directory")
	return cmd
}

func labPodAddCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "pod-add",
		Short:  "Add a pod, inside a node",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return lab.PodAddInside(cmd.Context(), cmd.InOrStdin(), cmd.OutOrStdout())
		},
	}
}

func labPodDelCmd() *cobra.Command {
	return &cobra.Command{
		Use:    "pod-del",
		Short:  "Delete a pod, inside a node",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return lab.PodDelInside(cmd.Context(), cmd.InOrStdin())
		},
	}
}

func labServeCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "serve [PORT]",
		Short: "Inside a pod: answer HTTP (and UDP, byte for byte) on a port, 80 unless named, until interrupted",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			port := uint64(80)
			if len(args) > 0 {
				var err error
				if port, err = strconv.ParseUint(args[0], 10, 16); err != nil || port == 0 {
					return &model.FieldError{Noun: "lab serve", Field: "PORT", Value: args[0], Want: "1..65535"}
				}
			}
			who, err := os.Hostname()
			if err != nil {
				return err
			}
			return lab.Serve(cmd.Context(), uint16(port), who, func() {
				_, _ = fmt.Fprintf(cmd.OutOrStdout(), "serving on port %d\n", port)
			})
		},
	}
}
