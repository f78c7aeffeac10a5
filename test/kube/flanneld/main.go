// Command flanneld does what upstream's flanneld does with --kube-subnet-mgr and --ip-masq, with upstream's
// own packages: it annotates its Node, runs the vxlan backend, masquerades, and writes subnet.env. Upstream's
// main also needs the backends of clouds, whose modules are large and not always to be had; hence this one,
// in a module of its own so that Heddle needs none of it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/flannel-io/flannel/pkg/backend"
	_ "github.com/flannel-io/flannel/pkg/backend/vxlan" // registers itself
	"github.com/flannel-io/flannel/pkg/ip"
	"github.com/flannel-io/flannel/pkg/ipmatch"
	"github.com/flannel-io/flannel/pkg/subnet/kube"
	"github.com/flannel-io/flannel/pkg/trafficmngr/nftables"
)

// What upstream's flags say when nobody says otherwise.
const (
	annotationPrefix = "flannel.alpha.coreos.com"
	subnetFile       = "/run/flannel/subnet.env"
	resyncSeconds    = 5
)

// usage: NODE_NAME=NAME flanneld KUBECONFIG NET-CONF
func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: NODE_NAME=NAME flanneld KUBECONFIG NET-CONF")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "flanneld:", err)
		os.Exit(1)
	}
}

// run keeps the order of upstream's main.
func run(ctx context.Context, kubeconfig, netConf string) error {
	subnets, err := kube.NewSubnetManager(ctx, "", kubeconfig, annotationPrefix, netConf, true)
	if err != nil {
		return err
	}
	config, err := subnets.GetNetworkConfig(ctx)
	if err != nil {
		return err
	}
	stack, err := ipmatch.GetIPFamily(config.EnableIPv4, config.EnableIPv6)
	if err != nil {
		return err
	}
	var public ipmatch.PublicIPOpts
	public.PublicIP, public.PublicIPv6 = subnets.GetStoredPublicIP(ctx)
	wire, err := ipmatch.LookupExtIface(public.PublicIP, "", "", stack, public)
	if err != nil {
		return err
	}
	vxlan, err := backend.NewManager(ctx, subnets, wire).GetBackend(config.BackendType)
	if err != nil {
		return err
	}
	var running sync.WaitGroup
	network, err := vxlan.RegisterNetwork(ctx, &running, config)
	if err != nil {
		return err
	}
	lease := network.Lease()
	rules := &nftables.NFTablesManager{}
	if err := rules.Init(ctx); err != nil {
		return err
	}
	var none4 ip.IP4Net
	var none6 ip.IP6Net
	if err := rules.SetupAndEnsureMasqRules(ctx, config.Network, none4, none4, config.IPv6Network, none6, none6, lease, resyncSeconds, false); err != nil {
		return err
	}
	rules.SetupAndEnsureForwardRules(ctx, config.Network, config.IPv6Network, resyncSeconds)
	if err := subnets.HandleSubnetFile(subnetFile, config, true, lease.Subnet, lease.IPv6Subnet, network.MTU()); err != nil {
		return err
	}
	running.Go(func() { network.Run(ctx) })
	err = subnets.CompleteLease(ctx, lease, &running)
	running.Wait()
	return err
}
