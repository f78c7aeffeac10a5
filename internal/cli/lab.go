package cli

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/lab"
	"github.com/heddle-net/heddle/internal/model"
)

// defaultLab is the name of a lab that nobody named.
const defaultLab = "demo"

func labCmd() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "lab",
		Short: "Bring up a whole network on this machine, cut off from its own",
		Long: "Nodes, segments, a router between them and pods, all in namespaces of their own: nothing of this\n" +
			"machine's network is touched, and `heddle lab down` leaves no trace.",
	}
	cmd.PersistentFlags().StringVar(&name, "name", "", "the lab's name (default: the only one, or "+defaultLab+")")
	cmd.AddCommand(
		labUpCmd(&name), labDownCmd(&name), labListCmd(), labStatusCmd(&name), labExecCmd(&name), labCaptureCmd(&name),
		labPingCmd(&name), labPodCmd(&name), labNetConfCmd(&name), labTopologiesCmd(), labTopologyCmd(),
		labServeCmd(), labMachineCmd(), labPodAddCmd(), labPodDelCmd(),
	)
	return cmd
}

// openLab opens the lab that --name names, else the only one.
func openLab(name string) (*lab.Lab, error) {
	if name == "" {
		names, err := lab.List()
		if err != nil {
			return nil, err
		}
		if len(names) > 1 {
			return nil, fmt.Errorf("lab: --name is missing: want one of %s", strings.Join(names, ", "))
		}
		name = defaultLab
		if len(names) == 1 {
			name = names[0]
		}
	}
	return lab.Open(name)
}

func labUpCmd(name *string) *cobra.Command {
	var netConf, objects string
	var spec lab.Spec
	var ping bool
	cmd := &cobra.Command{
		Use:   "up [TOPOLOGY|FILE.yaml]",
		Short: "Make a lab: " + strings.Join(topologyNames(), ", ") + ", or a YAML file like `heddle lab topology flat` prints",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			topology := "two-segments"
			if len(args) > 0 {
				topology = args[0]
			}
			var err error
			if spec.Topology, err = lab.LoadTopology(topology); err != nil {
				return err
			}
			if spec.NetConf, err = readNetConf(netConf, cmd.InOrStdin()); err != nil {
				return err
			}
			if objects != "" {
				text, err := os.ReadFile(objects)
				if err != nil {
					return err
				}
				spec.Objects = string(text)
			}
			spec.Name = cmp.Or(*name, defaultLab)
			out := cmd.OutOrStdout()
			say := func(at time.Duration, step string) { _, _ = fmt.Fprintf(out, "[%5.2fs] %s\n", at.Seconds(), step) }
			began := time.Now()
			spec.Progress = say
			l, err := lab.Up(cmd.Context(), spec)
			if err != nil {
				return err
			}
			var failed error
			if ping && spec.Pods > 1 {
				say(time.Since(began), "pinging between all pods")
				_, _ = fmt.Fprintln(out)
				failed = labPing(cmd, l, []model.Family{model.IPv4, model.IPv6})
			}
			_, _ = fmt.Fprint(out, labNote(l, time.Since(began)))
			return failed
		},
	}
	f := cmd.Flags()
	f.StringVar(&netConf, "net-conf", "", "Flannel's net-conf.json as a file or - for standard input; or host-gw, vxlan, vxlan+direct (default), with :4 or :6 for one family")
	f.StringVar(&objects, "apply", "", "a file of objects for the store, such as IPPools and BGPPeers; without --net-conf the network is what they say")
	f.StringVar(&spec.Attachment, "attachment", string(model.AttachBridge), "how pods hang on their node: bridge or routed")
	f.IntVar(&spec.Pods, "pods", 0, "pods to add, in turn to the nodes")
	f.BoolVar(&ping, "ping", true, "with pods: print the ping matrix")
	f.BoolVar(&spec.Bare, "bare", false, "machines and wires only: no store, no agents")
	f.StringVar(&spec.CNI, "cni-bin", "", "the heddle-cni binary (default: beside this one)")
	f.StringArrayVar(&spec.AgentArgs, "agent-arg", nil, "one more argument for every agent")
	return cmd
}

func topologyNames() []string {
	var names []string
	for _, t := range lab.Topologies() {
		names = append(names, t.Name)
	}
	return names
}

// readNetConf takes a file, "-", a mode's name, or nothing.
func readNetConf(arg string, stdin io.Reader) (string, error) {
	switch {
	case arg == "":
		return "", nil
	case arg == "-":
		raw, err := io.ReadAll(stdin)
		return string(raw), err
	case strings.Contains(arg, "/") || strings.HasSuffix(arg, ".json"):
		raw, err := os.ReadFile(arg)
		return string(raw), err
	}
	return lab.NetConf(arg)
}

// labNote says what to try in a lab that has just come up, and how to take it down.
func labNote(l *lab.Lab, took time.Duration) string {
	flag := ""
	if l.Name != defaultLab {
		flag = " --name " + l.Name
	}
	node := l.Nodes()[0]
	self := filepath.Base(os.Args[0])
	if strings.Contains(os.Args[0], "/") {
		self = os.Args[0]
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nLab %q is up after %.1f s. What to try next:\n", l.Name, took.Seconds())
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	line := func(command, what string) { _, _ = fmt.Fprintf(w, "  %s lab %s\t# %s\n", self, command, what) }
	line("status"+flag, "nodes and pods")
	if !l.Spec.Bare {
		line("ping"+flag, "the matrix again")
		line("exec"+flag+" "+node+" -- heddle status", "what "+node+"'s agent says")
		line("exec"+flag+" "+node+" -- heddle plan", "its routes and tunnels, as commands")
		line("net-conf"+flag+" vxlan", "change the mode of the running network")
		line("capture"+flag+" "+node+" 'udp port 8472 or icmp'", "what is on the wire")
		line("pod add"+flag+" "+node, "one more pod")
	}
	line("exec"+flag+" "+node+" -- bash", "a shell on "+node)
	line("down"+flag, "take it down, without a trace")
	_ = w.Flush() // into memory
	return b.String()
}

func labDownCmd(name *string) *cobra.Command {
	return &cobra.Command{
		Use:   "down",
		Short: "Take a lab down, whatever state it is in",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			which := *name
			if which == "" {
				l, err := openLab("")
				if err != nil {
					return err
				}
				which = l.Name
			}
			if err := lab.Down(cmd.Context(), which); err != nil {
				return err
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "lab %q is down\n", which)
			return err
		},
	}
}

func labListCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the labs of this machine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			names, err := lab.List()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			_, _ = fmt.Fprintln(w, "NAME\tTOPOLOGY\tMACHINES\tPODS")
			for _, n := range names {
				l, err := lab.Open(n)
				if err != nil {
					_, _ = fmt.Fprintf(w, "%s\tbroken: %v\t\t\n", n, err)
					continue
				}
				running, _ := l.Running()
				pods, _ := l.Pods()
				_, _ = fmt.Fprintf(w, "%s\t%s\t%d\t%d\n", n, l.Spec.Topology.Name, len(running), len(pods))
			}
			return w.Flush()
		},
	}
}

func labTopologiesCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "topologies",
		Short: "List the built-in topologies",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, t := range lab.Topologies() {
				_, _ = fmt.Fprintf(w, "%s\t%s\n", t.Name, t.About)
			}
			return w.Flush()
		},
	}
}

func labTopologyCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "topology NAME",
		Short: "Print a built-in topology's YAML, to begin an own one from",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			raw, err := lab.TopologyText(args[0])
			if err != nil {
				return err
			}
			_, err = cmd.OutOrStdout().Write(raw)
			return err
		},
	}
}

func labStatusCmd(name *string) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show a lab's machines and pods",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := openLab(*name)
			if err != nil {
				return err
			}
			s, err := l.Survey(cmd.Context())
			if err != nil {
				return err
			}
			switch output {
			case "json":
				e := json.NewEncoder(cmd.OutOrStdout())
				e.SetIndent("", "  ")
				return e.Encode(s)
			case "":
				return s.Print(cmd.OutOrStdout())
			}
			return &model.FieldError{Noun: "lab status", Field: "-o", Value: output, Want: "json"}
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "json")
	return cmd
}
