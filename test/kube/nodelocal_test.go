//go:build kube

package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/test/kube/lab"
)

// nodeLocal is the address of upstream's node-local DNS cache, kubeDNS that of the Service.
const nodeLocal, kubeDNS = "169.254.20.10", "10.96.0.10"

// A DNS cache of the node's own, as upstream's node-local-dns: CoreDNS on the host's network and a link-local address of an
// interface of the node's, and beside kube-proxy's iptables mode on the address of kube-dns as well, with its connections not
// tracked. Pods reach it, by UDP and by TCP, unless a policy denies it; one that allows DNS to the pods of kube-dns does not mean
// it, one that names its address does.
func TestNodeLocalDNSIsReachedAsPoliciesSay(t *testing.T) {
	for _, test := range []struct {
		attachment, proxy string
		local             []string // of the cache
	}{
		{"bridge", "nftables", []string{nodeLocal}},
		{"routed", "iptables", []string{nodeLocal, kubeDNS}},
	} {
		t.Run(test.attachment, func(t *testing.T) {
			ctx, l := up(t, func(s *lab.Spec) {
				s.Nodes, s.Proxy = 1, test.proxy
				s.Manifest = withConfig(t, s.Manifest, "attachment: "+test.attachment)
			})
			client := deploy(ctx, t, l, "client", false, 8080)[0]
			startNodeLocal(ctx, t, l, client.node, test.local)
			ns := netnsOf(ctx, t, l, client)
			answer := strings.TrimSpace(kubectl(ctx, t, l, "get", "service", "client", "-o", "jsonpath={.spec.clusterIP}"))
			// asks wants those servers to answer that are wanted, and no other.
			asks := func(when string, wanted ...string) {
				t.Helper()
				for _, server := range []string{nodeLocal, kubeDNS} {
					for _, network := range []string{"udp", "tcp"} {
						want := slices.Contains(wanted, server)
						eventually(t, time.Minute, fmt.Sprintf("%s: %s answers by %s: %t", when, server, network, want), func() error {
							got, err := resolve(ctx, ns, network, server, want)
							if err == nil && !slices.Equal(got, []string{answer}) {
								t.Fatalf("%s answers %q, want %s", server, got, answer)
							}
							if !want && err == nil {
								return errors.New("it answers")
							}
							if !want {
								return nil
							}
							return err
						})
						if want {
							continue
						}
						if _, err := resolve(ctx, ns, network, server, want); err == nil {
							t.Errorf("%s: %s answers by %s now and then", when, server, network)
						}
					}
				}
			}
			policy := func(egress string) {
				t.Helper()
				if err := l.Apply(ctx, fmt.Sprintf(isolated, egress)); err != nil {
					t.Fatal(err)
				}
			}
			asks("without policies", nodeLocal, kubeDNS)
			policy("[]")
			asks("with everything denied")
			policy(`[{to: [{namespaceSelector: {}, podSelector: {matchLabels: {k8s-app: kube-dns}}}]}]`)
			asks("with the pods of kube-dns allowed", slices.DeleteFunc([]string{kubeDNS}, func(s string) bool { return slices.Contains(test.local, s) })...)
			policy("[{to: [{ipBlock: {cidr: " + strings.Join(test.local, "/32}}, {ipBlock: {cidr: ") +
				"/32}}], ports: [{port: 53, protocol: UDP}, {port: 53, protocol: TCP}]}]")
			asks("with the cache's addresses allowed", test.local...)

			tracked, err := l.Exec(ctx, client.node, "sh", "-c", "nft list chain ip nodelocal prerouting; conntrack -L -d "+nodeLocal)
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(tracked, "packets 0 ") || strings.Contains(tracked, "dport=53") {
				t.Errorf("connections to %s should not be tracked: counters of packets that were not, and those that are:\n%s", nodeLocal, tracked)
			}
		})
	}
}

// isolated is a pod that hears nobody and sends as told.
const isolated = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: isolated}
spec:
  podSelector: {matchLabels: {app: client}}
  policyTypes: [Ingress, Egress]
  egress: %s
`

// withConfig is a copy of the manifest with another line in heddle.yaml.
func withConfig(t *testing.T, manifest, line string) string {
	t.Helper()
	text, err := os.ReadFile(manifest)
	if err != nil {
		t.Fatal(err)
	}
	const last = "    netConf: /etc/heddle/net-conf.json\n"
	if strings.Count(string(text), last) != 1 {
		t.Fatalf("%s: want one line %q", manifest, last)
	}
	file := filepath.Join(t.TempDir(), "heddle.yaml")
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), last, last+"    "+line+"\n", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// resolve asks a DNS server for the Service client, from a pod. It is less patient when no answer should come.
func resolve(ctx context.Context, ns *os.File, network, server string, want bool) ([]string, error) {
	patience := 300 * time.Millisecond
	if want {
		patience = 3 * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	dial := dialFrom(ns)
	r := net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dial(ctx, network, net.JoinHostPort(server, "53"))
	}}
	var all []string
	ips, err := r.LookupIP(ctx, "ip4", "client.default.svc.cluster.local.")
	for _, ip := range ips {
		all = append(all, ip.String())
	}
	return all, err
}

// startNodeLocal does what upstream's node-cache does to a node, and runs a cache there. (kubernetes/dns, cmd/node-cache; the
// interface there is of type dummy)
func startNodeLocal(ctx context.Context, t *testing.T, l *lab.Lab, node string, local []string) {
	t.Helper()
	commands := []string{
		"ip link add nodelocaldns type bridge", "ip link set nodelocaldns up",
		"nft add table ip nodelocal",
		"nft add chain ip nodelocal prerouting '{ type filter hook prerouting priority raw; }'",
		"nft add chain ip nodelocal output '{ type filter hook output priority raw; }'",
	}
	for _, address := range local {
		commands = append(commands, "ip address add "+address+"/32 dev nodelocaldns")
		for _, protocol := range []string{"udp", "tcp"} {
			commands = append(commands,
				"nft add rule ip nodelocal prerouting ip daddr "+address+" "+protocol+" dport 53 counter notrack",
				"nft add rule ip nodelocal output ip daddr "+address+" "+protocol+" dport 53 counter notrack",
				"nft add rule ip nodelocal output ip saddr "+address+" "+protocol+" sport 53 counter notrack")
		}
	}
	if _, err := l.Exec(ctx, node, "sh", "-ec", strings.Join(commands, "\n")); err != nil {
		t.Fatal(err)
	}
	if err := l.Apply(ctx, fmt.Sprintf(nodeLocalDNS, strings.Join(local, " "))); err != nil {
		t.Fatal(err)
	}
	kubectl(ctx, t, l, "rollout", "status", "-n", "kube-system", "daemonset/node-local-dns", "--timeout=2m")
}

// nodeLocalDNS asks the pods of kube-dns by a Service of its own, as its address may be the cache's.
const nodeLocalDNS = `
apiVersion: v1
kind: Service
metadata: {name: kube-dns-upstream, namespace: kube-system}
spec:
  clusterIP: 10.96.0.11
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: node-local-dns, namespace: kube-system}
data:
  Corefile: |
    .:53 {
        errors
        bind %s
        cache 5
        forward . 10.96.0.11 {
            force_tcp
        }
        ready ` + nodeLocal + `:8181
    }
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: node-local-dns, namespace: kube-system}
spec:
  selector: {matchLabels: {k8s-app: node-local-dns}}
  template:
    metadata: {labels: {k8s-app: node-local-dns}}
    spec:
      hostNetwork: true
      dnsPolicy: Default
      terminationGracePeriodSeconds: 0
      containers:
      - name: node-cache
        image: lab.local/coredns:lab
        args: [-conf, /etc/coredns/Corefile]
        readinessProbe: {httpGet: {host: ` + nodeLocal + `, path: /ready, port: 8181}, periodSeconds: 1}
        volumeMounts: [{name: config, mountPath: /etc/coredns}]
      volumes: [{name: config, configMap: {name: node-local-dns}}]
`
