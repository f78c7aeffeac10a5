package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/flannelkv"
	"github.com/heddle-net/heddle/internal/store/kube"
)

// storeFlags are for commands that talk to the store themselves. What is not given comes from
// heddle.yaml.
func storeFlags(cmd *cobra.Command) func(context.Context) (store.Store, error) {
	var f agentFlags
	s := cmd.PersistentFlags()
	s.StringVar(&f.file, "config", defaultConfigFile, "configuration file with the store's address")
	s.StringVar(&f.storeType, "store", "", "store: etcd, flannel or kubernetes")
	s.StringSliceVar(&f.endpoints, "endpoints", nil, "URLs of the store")
	s.StringVar(&f.prefix, "prefix", "", "prefix of the store's keys")
	s.StringVar(&f.ca, "ca", "", "certificate authority of the store")
	s.StringVar(&f.cert, "cert", "", "certificate for the store")
	s.StringVar(&f.key, "key", "", "key of that certificate")
	return func(ctx context.Context) (store.Store, error) {
		c := config.Default()
		text, err := os.ReadFile(f.file)
		if err == nil {
			if c, err = config.Parse(text); err != nil {
				return nil, err
			}
		} else if !errors.Is(err, os.ErrNotExist) || s.Changed("config") {
			return nil, err
		}
		st := c.Store
		if len(f.endpoints) > 0 {
			st = config.Store{Type: st.Type, Endpoints: f.endpoints} // the certificates in the file are for its own
		}
		for to, flag := range map[*string]string{&st.Prefix: f.prefix, &st.CA: f.ca, &st.Cert: f.cert, &st.Key: f.key} {
			if flag != "" {
				*to = flag
			}
		}
		if f.storeType != "" {
			st.Type = config.StoreType(f.storeType)
		}
		log, err := newLogger("error")
		if err != nil {
			return nil, err
		}
		c.Store = st
		return openStore(ctx, c, log)
	}
}

func networkCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "network", Short: "Show or set the network's pools"}
	open := storeFlags(cmd)
	var masq bool
	set := &cobra.Command{
		Use:   "set FILE",
		Short: "Set the network from a net-conf.json in Flannel's words (- reads standard input)",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			text, err := readFile(cmd, args[0])
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 10*time.Second)
			defer cancel()
			return setNetwork(ctx, cmd, open, text, masq)
		},
	}
	set.Flags().BoolVar(&masq, "ip-masq", true, "masquerade pods that talk to the outside")
	show := &cobra.Command{
		Use:   "show",
		Short: "Print the network's pools as JSON",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			items, err := list(cmd.Context(), open, model.KindPool)
			if err != nil {
				return err
			}
			e := json.NewEncoder(cmd.OutOrStdout())
			e.SetIndent("", "  ")
			for _, i := range items {
				if err := e.Encode(i.Object); err != nil {
					return err
				}
			}
			return nil
		},
	}
	cmd.AddCommand(set, show)
	return cmd
}

// setNetwork files a net-conf.json: as pools, or as it is where Flannel's layout is the store.
func setNetwork(ctx context.Context, cmd *cobra.Command, open func(context.Context) (store.Store, error), text []byte, masq bool) error {
	pools, err := flannel.ParseNetConf(text)
	if err != nil {
		return err
	}
	s, err := open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	if shared, ok := s.(*flannelkv.Store); ok {
		if cmd.Flags().Changed("ip-masq") {
			return &model.FieldError{Noun: "network set", Field: "--ip-masq", Value: fmt.Sprint(masq), Want: "nothing with store type flannel, where it is each agent's own (heddle agent --ip-masq)"}
		}
		return shared.PutConfig(ctx, text)
	}
	if _, is := s.(*kube.Store); is {
		return fmt.Errorf("network: %w: with store type kubernetes it is the net-conf.json that every agent is given (netConf): change the ConfigMap", store.ErrUnsupported)
	}
	for i := range pools {
		pools[i].Masquerade = masq
	}
	return agent.FilePools(ctx, s, pools)
}

func nodeCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "node", Short: "List the network's nodes, or remove one that is gone"}
	open := storeFlags(cmd)
	var force bool
	remove := &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a node that is gone: its blocks become free",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return removeNode(cmd, open, args[0], force)
		},
	}
	remove.Flags().BoolVar(&force, "force", false, "also when its last sign of life is recent, as after its agent was stopped")
	cmd.AddCommand(&cobra.Command{
		Use:   "list",
		Short: "List the nodes with their blocks and last sign of life",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return listNodes(cmd, open)
		},
	}, remove)
	return cmd
}

func listNodes(cmd *cobra.Command, open func(context.Context) (store.Store, error)) error {
	beats, err := list(cmd.Context(), open, model.KindHeartbeat)
	if err != nil && !errors.Is(err, store.ErrUnsupported) { // Kubernetes has its own
		return err
	}
	blocks, err := list(cmd.Context(), open, model.KindBlock)
	if err != nil {
		return err
	}
	nodes, err := list(cmd.Context(), open, model.KindNode)
	if err != nil {
		return err
	}
	seen, owned := map[string]string{}, map[string][]string{}
	for _, i := range beats {
		h := i.Object.(*model.Heartbeat)
		seen[h.Node] = time.Since(h.Renewed).Round(time.Second).String() + " ago"
		if h.Lost(time.Now()) > 0 {
			seen[h.Node] += ", lost"
		}
	}
	for _, i := range blocks {
		b := i.Object.(*model.Block)
		owned[b.Node] = append(owned[b.Node], b.CIDR.String())
	}
	w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 8, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "NODE\tADDRESS\tBLOCKS\tSEEN\tVERSION")
	for _, i := range nodes {
		n := i.Object.(*model.Node)
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", n.Name, join(n.Address4, n.Address6), words(owned[n.Name]), seen[n.Name], n.Version)
	}
	return w.Flush()
}

func removeNode(cmd *cobra.Command, open func(context.Context) (store.Store, error), name string, force bool) error {
	ctx, cancel := context.WithTimeout(cmd.Context(), 30*time.Second)
	defer cancel()
	s, err := open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	recent := ""
	if i, err := s.Get(ctx, model.KindHeartbeat, name); err == nil {
		if h := i.Object.(*model.Heartbeat); h.Lost(time.Now()) <= 0 {
			recent = time.Since(h.Renewed).Round(time.Second).String()
			if !force {
				return fmt.Errorf("node %q was alive %s ago: stop its agent first, and try again once it counts as lost, in %s, or at once with --force",
					name, recent, (-h.Lost(time.Now())).Round(time.Second))
			}
		}
	}
	node, err := s.Get(ctx, model.KindNode, name)
	if errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("node %q is not in the network: see `heddle node list`", name)
	} else if err != nil {
		return err
	}
	if _, is := s.(*kube.Store); is {
		if err := s.Delete(ctx, model.KindNode, name, node.Revision); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "removed node %s from the network; the Node object and its podCIDRs go with: kubectl delete node %s\n", name, name)
		return err
	}
	// If its agent runs after all, it publishes its workloads again when it misses its node.
	if err := agent.RemoveEndpoints(ctx, s, name); err != nil {
		return err
	}
	// The node before its blocks: its routes must be gone before its blocks can be another's.
	if err := s.Delete(ctx, model.KindNode, name, node.Revision); err != nil {
		return err
	}
	blocks, _, err := s.List(ctx, model.KindBlock)
	if err != nil {
		return err
	}
	var freed []string
	for _, i := range blocks {
		if b := i.Object.(*model.Block); b.Node == name {
			if err := s.Delete(ctx, model.KindBlock, b.Key(), i.Revision); err != nil {
				return err
			}
			freed = append(freed, b.CIDR.String())
		}
	}
	if err := s.Delete(ctx, model.KindHeartbeat, name, store.AnyRevision); err != nil {
		return err
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "removed node %s; free again: %s\n", name, words(freed))
	if recent != "" && err == nil {
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "it was alive %s ago: if its agent still runs, it registers again\n", recent)
	}
	return err
}

func list(ctx context.Context, open func(context.Context) (store.Store, error), k model.Kind) ([]store.Item, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Close() }()
	items, _, err := s.List(ctx, k)
	return items, err
}

func readFile(cmd *cobra.Command, name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(io.LimitReader(cmd.InOrStdin(), dialect.MaxText+1))
	}
	return os.ReadFile(name)
}
