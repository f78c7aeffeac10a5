package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// What Flannel's manifest calls things.
const (
	// FlannelReservations is where its host-local keeps a file per address in use.
	FlannelReservations = "/var/lib/cni/networks/cbr0"

	flannelEnv  = "/run/flannel/subnet.env"
	flannelConf = "/etc/cni/net.d/10-flannel.conflist"
)

// Flannel makes Flannel the network of a lab that has none, as upstream's manifest does: a ConfigMap with
// net-conf.json and the CNI chain's configuration, and on every node flanneld (test/kube/flanneld) and the chain.
// Upstream's plugin "flannel" fills in the bridge's configuration from subnet.env whenever it is called; here that
// is written out once. It returns each flanneld's process ID in its node.
func (l *Lab) Flannel(ctx context.Context) (daemons map[string]string, err error) {
	netConf := l.netConf()
	netConf["EnableNFTables"] = true // Upstream's default is iptables; kernels without its modules have labs, too.
	conf, err := json.Marshal(netConf)
	if err != nil {
		return nil, err
	}
	if err := l.Apply(ctx, fmt.Sprintf("apiVersion: v1\nkind: Namespace\nmetadata: {name: kube-flannel}\n---\n"+
		"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: kube-flannel-cfg, namespace: kube-flannel}\ndata:\n  net-conf.json: '%s'\n", conf)); err != nil {
		return nil, err
	}
	daemons = map[string]string{}
	for _, node := range l.Nodes() {
		for _, p := range []string{"bridge", "host-local", "portmap"} {
			if _, err := l.Exec(ctx, node, "cp", l.bin("cni/"+p), "/opt/cni/bin/"); err != nil {
				return nil, err
			}
		}
		if err := l.writeFile(ctx, node, "/etc/kube-flannel/net-conf.json", conf); err != nil {
			return nil, err
		}
		pid, err := l.Exec(ctx, node, "sh", "-c", `NODE_NAME=$1 setsid flanneld "$2" /etc/kube-flannel/net-conf.json >/var/log/flanneld.log 2>&1 </dev/null & echo $!`,
			"sh", node, l.path("pki", "admin.kubeconfig"))
		if err != nil {
			return nil, err
		}
		daemons[node] = strings.TrimSpace(pid)
	}
	for _, node := range l.Nodes() {
		if err := l.configureFlannelChain(ctx, node); err != nil {
			log, _ := os.ReadFile(filepath.Join(l.path(node, "log"), "flanneld.log"))
			return nil, fmt.Errorf("%w\nflanneld wrote:\n%s", err, log)
		}
	}
	l.step("Flannel is installed")
	return daemons, l.waitReady(ctx)
}

// configureFlannelChain waits for a node's subnet.env and writes what Flannel's plugin makes of it.
func (l *Lab) configureFlannelChain(ctx context.Context, node string) error {
	env := map[string]string{}
	if err := l.until(ctx, time.Minute, node+"'s "+flannelEnv, func() error {
		text, err := l.Exec(ctx, node, "cat", flannelEnv)
		for line := range strings.Lines(text) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			env[key] = value
		}
		return err
	}); err != nil {
		return err
	}
	own, err := netip.ParsePrefix(env["FLANNEL_SUBNET"]) // 10.244.1.1/24: with the gateway's address
	if err != nil {
		return fmt.Errorf("node %s: %s: %w", node, flannelEnv, err)
	}
	chain, err := json.Marshal(map[string]any{"name": "cbr0", "cniVersion": "1.0.0", "plugins": []any{
		map[string]any{
			"type": "bridge", "bridge": "cni0", "hairpinMode": true, "isDefaultGateway": true, "isGateway": true, "ipMasq": false,
			"mtu": json.Number(env["FLANNEL_MTU"]),
			"ipam": map[string]any{
				"type":   "host-local",
				"ranges": []any{[]any{map[string]any{"subnet": own.Masked().String()}}},
				"routes": []any{map[string]any{"dst": env["FLANNEL_NETWORK"]}},
			},
		},
		map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
	}})
	if err != nil {
		return err
	}
	return l.writeFile(ctx, node, flannelConf, chain)
}

// writeFile writes a file of a node, and the folder it is in; nobody sees half of it.
func (l *Lab) writeFile(ctx context.Context, node, path string, text []byte) error {
	cmd, err := l.Command(ctx, node, "sh", "-c", `mkdir -p "${1%/*}" && cat >"${1%/*}/.new" && mv "${1%/*}/.new" "$1"`, "sh", path)
	if err != nil {
		return err
	}
	cmd.Stdin = bytes.NewReader(text)
	_, err = output(cmd)
	return err
}
