package cli

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"runtime/debug"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/heddle-net/heddle/internal/agent"
	"github.com/heddle-net/heddle/internal/bfd"
	"github.com/heddle-net/heddle/internal/bgp"
	"github.com/heddle-net/heddle/internal/cert"
	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/kernel"
	"github.com/heddle-net/heddle/internal/kernel/filter"
	"github.com/heddle-net/heddle/internal/kernel/flow"
	"github.com/heddle-net/heddle/internal/kernel/netlink"
	"github.com/heddle-net/heddle/internal/kernel/nft"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/etcd"
	"github.com/heddle-net/heddle/internal/store/flannelkv"
	"github.com/heddle-net/heddle/internal/store/kube"
)

const defaultConfigFile = "/etc/heddle/heddle.yaml"

// agentFlags are the flags of `heddle agent`; each overrides its field of heddle.yaml.
type agentFlags struct {
	file, node, storeType, prefix, ca, cert, key, netConf, attachment, bridge, kubeconfig string
	stateDir, runDir, cniConfDir, cniNetwork, subnetFile, metrics, logLevel               string
	address, public, endpoints                                                            []string
	masq                                                                                  bool
	leaseTTL, leaseGrace, cooldown                                                        time.Duration
}

func agentCmd() *cobra.Command {
	var f agentFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run this node's agent",
		Long:  "Run this node's agent. Flags override " + defaultConfigFile + ", which may be absent.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := f.config(cmd)
			if err != nil {
				return err
			}
			log, err := newLogger(f.logLevel)
			if err != nil {
				return err
			}
			return runAgent(cmd.Context(), c, log)
		},
	}
	d := config.Default()
	s := cmd.Flags()
	s.StringVar(&f.file, "config", defaultConfigFile, "configuration file")
	s.StringVar(&f.node, "node", "", "name of this node (default: the host's name)")
	s.StringSliceVar(&f.address, "address", nil, "this node's address that peers use, at most one of each family (default: the one that routes to the peers)")
	s.StringSliceVar(&f.public, "public-address", nil, "address by which nodes in other segments reach this one, behind a NAT")
	s.StringVar(&f.storeType, "store", string(d.Store.Type), "store: etcd, flannel for an etcd in Flannel's layout, or kubernetes")
	s.StringSliceVar(&f.endpoints, "endpoints", d.Store.Endpoints, "URLs of the store")
	s.StringVar(&f.prefix, "prefix", "", "prefix of the store's keys (default: the layout's own)")
	s.StringVar(&f.ca, "ca", "", "certificate authority of the store")
	s.StringVar(&f.cert, "cert", "", "certificate for the store")
	s.StringVar(&f.key, "key", "", "key of that certificate")
	s.StringVar(&f.kubeconfig, "kubeconfig", "", "how to reach the API server, with --store kubernetes (default: as pods do)")
	s.StringVar(&f.netConf, "net-conf", "", "net-conf.json in Flannel's words; read again when it changes")
	s.StringVar(&f.attachment, "attachment", string(d.Attachment), "how pods hang on the node: bridge or routed")
	s.StringVar(&f.bridge, "bridge", d.Bridge, "name of the bridge")
	s.BoolVar(&f.masq, "ip-masq", true, "masquerade pods that talk to the outside")
	s.StringVar(&f.stateDir, "state-dir", d.StateDir, "what survives a reboot")
	s.StringVar(&f.runDir, "run-dir", d.RunDir, "sockets")
	s.StringVar(&f.cniConfDir, "cni-conf-dir", d.CNIConfDir, "where the conflist is written once the node is ready")
	s.StringVar(&f.cniNetwork, "cni-network", d.CNINetwork, "name of the network in the conflist")
	s.StringVar(&f.subnetFile, "subnet-file", "", "write Flannel's subnet.env there")
	s.StringVar(&f.metrics, "metrics", "", "also serve /metrics, /healthz and /readyz on host:port or unix:/path")
	s.DurationVar(&f.leaseTTL, "lease-ttl", time.Duration(d.LeaseTTL), "without a heartbeat for so long, a node counts as lost")
	s.DurationVar(&f.leaseGrace, "lease-grace", time.Duration(d.LeaseGrace), "lost for so long, a node is withdrawn")
	s.DurationVar(&f.cooldown, "cooldown", time.Duration(d.Cooldown), "how long an address rests before it is used again")
	s.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	return cmd
}

// config is file, then flags, then what the host says.
func (f *agentFlags) config(cmd *cobra.Command) (config.Config, error) {
	c := config.Default()
	text, err := os.ReadFile(f.file)
	switch {
	case err == nil:
		if c, err = config.Parse(text); err != nil {
			return c, err
		}
	case errors.Is(err, os.ErrNotExist) && !cmd.Flags().Changed("config"):
	default:
		return c, fmt.Errorf("--config: %w", err)
	}
	for name, field := range map[string]*string{
		"node": &c.Node, "prefix": &c.Store.Prefix, "ca": &c.Store.CA, "cert": &c.Store.Cert, "key": &c.Store.Key, "kubeconfig": &c.Store.Kubeconfig,
		"net-conf": &c.NetConf, "bridge": &c.Bridge, "state-dir": &c.StateDir, "run-dir": &c.RunDir,
		"cni-conf-dir": &c.CNIConfDir, "cni-network": &c.CNINetwork, "subnet-file": &c.SubnetFile, "metrics": &c.Metrics,
		"store": (*string)(&c.Store.Type), "attachment": (*string)(&c.Attachment),
	} {
		if flag := cmd.Flags().Lookup(name); flag.Changed {
			*field = flag.Value.String()
		}
	}
	for name, field := range map[string]*config.Duration{"lease-ttl": &c.LeaseTTL, "lease-grace": &c.LeaseGrace, "cooldown": &c.Cooldown} {
		if cmd.Flags().Changed(name) {
			d, _ := cmd.Flags().GetDuration(name)
			*field = config.Duration(d)
		}
	}
	if cmd.Flags().Changed("endpoints") {
		c.Store.Endpoints = f.endpoints
	}
	if cmd.Flags().Changed("ip-masq") {
		c.Masquerade = &f.masq
	}
	if cmd.Flags().Changed("address") {
		if c.Address, err = addresses("address", f.address); err != nil {
			return c, err
		}
	}
	if cmd.Flags().Changed("public-address") {
		if c.PublicAddress, err = addresses("public-address", f.public); err != nil {
			return c, err
		}
	}
	if c.Node == "" {
		name, err := os.Hostname()
		if err != nil {
			return c, err
		}
		c.Node = strings.ToLower(name)
	}
	return c, c.Validate()
}

func addresses(flag string, texts []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, t := range texts {
		a, err := netip.ParseAddr(t)
		if err != nil {
			return nil, &model.FieldError{Noun: "heddle agent", Field: "--" + flag, Value: t, Want: "an IP address"}
		}
		out = append(out, a)
	}
	return out, nil
}

// runAgent puts the real parts together.
func runAgent(ctx context.Context, c config.Config, log *slog.Logger) error {
	if c.NetConf != "" {
		if c.Store.Type == config.StoreFlannel {
			return &model.FieldError{Noun: "heddle.yaml", Field: "netConf", Value: c.NetConf, Want: "nothing with store type flannel, whose network is the key config in etcd"}
		}
		text, err := os.ReadFile(c.NetConf)
		if err != nil {
			return fmt.Errorf("netConf: %w", err)
		}
		if _, err := flannel.ParseNetConf(text); err != nil {
			return err
		}
	}
	if err := needNetAdmin(); err != nil {
		return err
	}
	// Most of an agent's garbage is made by the few passes after a change: collecting it early costs
	// little and keeps the resident size near what is in use.
	debug.SetGCPercent(25)

	s, err := openStore(ctx, c, log)
	if err != nil {
		return err
	}
	defer func() { _ = s.Close() }()
	here := netlink.Options{NS: netlink.CurrentNS, Log: log}
	links, err := netlink.New(here)
	if err != nil {
		return err
	}
	pods, err := netlink.NewPods(here)
	if err != nil {
		return err
	}
	facts, err := netlink.NewFacts(here)
	if err != nil {
		return err
	}
	rules, err := nft.New(nft.Options{NS: -1, Log: log})
	if err != nil {
		return err
	}
	policies, err := filter.New(filter.Options{NS: -1, Log: log, Inside: []string{c.Bridge}})
	if err != nil {
		return err
	}
	flows, err := flow.New(flow.Options{NS: -1, Log: log})
	if err != nil {
		return err
	}
	a, err := agent.New(agent.Options{
		Config: c, Version: Version, Log: log, Store: s,
		Drivers: []kernel.Driver{links, rules}, Pods: pods, Facts: facts,
		Filter: policies, Flows: flows, Packets: flows,
		Speaker: bgp.New(bgp.Options{Log: log, BFD: bfd.New(log)}),
	})
	if err != nil {
		return err
	}
	return a.Run(ctx)
}

// openStore connects to what the configuration names; it does not wait for it.
func openStore(ctx context.Context, c config.Config, log *slog.Logger) (store.Store, error) {
	o := etcd.Options{
		Endpoints: c.Store.Endpoints, TLS: cert.Files{CA: c.Store.CA, Cert: c.Store.Cert, Key: c.Store.Key},
		Prefix: c.Store.Prefix, Logger: log,
	}
	switch c.Store.Type {
	case config.StoreFlannel:
		return flannelkv.New(ctx, o)
	case config.StoreEtcd:
		return etcd.New(ctx, o)
	case config.StoreKubernetes:
		return kube.New(ctx, kube.Options{Kubeconfig: c.Store.Kubeconfig, Node: c.Node, Pools: poolsOf(c), Version: Version, Log: log})
	}
	return nil, &model.FieldError{Noun: "store", Field: "type", Value: string(c.Store.Type), Want: "etcd, flannel or kubernetes"}
}

// poolsOf are the pools of the configured net-conf.json. Kubernetes has no place for them: there, each process
// begins with those of the file. Whatever is wrong with it is said by the agent, which reads it again.
func poolsOf(c config.Config) []model.Pool {
	text, err := os.ReadFile(c.NetConf)
	if err != nil {
		return nil
	}
	pools, err := flannel.ParseNetConf(text)
	if err != nil {
		return nil
	}
	for i := range pools {
		pools[i].Masquerade = c.Masquerade != nil && *c.Masquerade
	}
	return pools
}

func newLogger(level string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, fmt.Errorf("--log-level %s: want debug, info, warn or error", level)
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: l})), nil
}
