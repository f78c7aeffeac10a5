//go:build kube

package kube

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/test/kube/lab"
)

// poolDefinitions are those of Calico's CustomResourceDefinitions that a further pool takes.
const poolDefinitions = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[1]s.crd.projectcalico.org}
spec:
  group: crd.projectcalico.org
  scope: Cluster
  names: {plural: %[1]s, singular: %[2]s, kind: %[3]s, listKind: %[3]sList}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
`

// morePool has eight blocks of one address for pods.
const morePool = `
apiVersion: crd.projectcalico.org/v1
kind: FelixConfiguration
metadata: {name: default}
spec: {vxlanVNI: 1, vxlanPort: 8472}
---
apiVersion: crd.projectcalico.org/v1
kind: IPPool
metadata: {name: more}
spec: {cidr: 10.245.0.0/27, blockSize: 30, vxlanMode: Always, natOutgoing: true}
`

const morePod = `
apiVersion: v1
kind: Pod
metadata:
  name: %[1]s
  labels: {app: more}
  annotations: {cni.projectcalico.org/ipv4pools: '["more"]'}
spec:
  nodeName: %[2]s
  terminationGracePeriodSeconds: 0
  containers:
  - name: web
    image: lab.local/agnhost:2.63.0
    args: [netexec, --http-port=8080, --udp-port=-1]
    readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1}
---
`

// heldBlock is a Block object.
type heldBlock struct {
	cidr         netip.Prefix
	node, lender string
}

func blocksOf(ctx context.Context, t *testing.T, l *lab.Lab) (blocks []heldBlock) {
	t.Helper()
	out := kubectl(ctx, t, l, "get", "blocks", "-o", `jsonpath={range .items[*]}{.spec.cidr}{" "}{.spec.node}{" "}{.spec.lender}{"\n"}{end}`)
	for line := range strings.Lines(out) {
		f := append(strings.Fields(line), "")
		p, err := netip.ParsePrefix(f[0])
		if err != nil || len(f) < 3 {
			t.Fatalf("block %q: %v", line, err)
		}
		blocks = append(blocks, heldBlock{p, f[1], f[2]})
	}
	return blocks
}

// routed is a lab whose pods are on routes: in that style nodes borrow addresses of each other.
func routed(t *testing.T) func(*lab.Spec) {
	return func(s *lab.Spec) {
		text, err := os.ReadFile(s.Manifest)
		if err != nil {
			t.Fatal(err)
		}
		const line = "    netConf: /etc/heddle/net-conf.json\n"
		changed := strings.Replace(string(text), line, line+"    attachment: routed\n", 1)
		if changed == string(text) {
			t.Fatalf("%s has no line %q", s.Manifest, line)
		}
		s.Manifest = filepath.Join(t.TempDir(), "heddle.yaml")
		if err := os.WriteFile(s.Manifest, []byte(changed), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A second pool comes while everything runs: pods that name it get addresses of blocks that their nodes claim, and the last
// ones addresses that the other node lends. They reach each other and those of the podCIDRs, and the blocks are free
// again when pods and pool are gone.
func TestNodesClaimAndLendBlocksOfAFurtherPool(t *testing.T) {
	ctx, l := up(t, routed(t))
	for _, k := range [][3]string{{"ippools", "ippool", "IPPool"}, {"felixconfigurations", "felixconfiguration", "FelixConfiguration"}} {
		if err := l.Apply(ctx, fmt.Sprintf(poolDefinitions, k[0], k[1], k[2])); err != nil {
			t.Fatal(err)
		}
	}
	const patience = 3 * time.Minute
	begin := time.Now()
	step := func(what string) { t.Logf("%6.1fs %s", time.Since(begin).Seconds(), what) }
	eventually(t, patience, "the pool is taken", func() error { return l.Apply(ctx, morePool) })
	const each = 4
	for i, n := range l.Nodes() {
		var manifests strings.Builder
		for p := range each {
			fmt.Fprintf(&manifests, morePod, fmt.Sprintf("more-%s-%d", n, p), n)
		}
		if err := l.Apply(ctx, manifests.String()); err != nil {
			t.Fatal(err)
		}
		if i > 0 {
			continue
		}
		// It claims two more ahead, which leaves the other node too few.
		eventually(t, patience, "the first node has its blocks", func() error {
			if blocks := blocksOf(ctx, t, l); len(blocks) != each+2 {
				return fmt.Errorf("blocks: %v", blocks)
			}
			return nil
		})
	}
	step("the first node has its blocks")
	before := deploy(ctx, t, l, "web", false, 8080)
	kubectl(ctx, t, l, "wait", "--for=condition=Ready", "pod", "-l", "app=more", "--timeout=3m")

	step("all pods are ready")
	var pods []pod
	out := kubectl(ctx, t, l, "get", "pods", "-l", "app=more", "-o", `jsonpath={range .items[*]}{.metadata.name}{" "}{.spec.nodeName}{" "}{.status.podIP}{"\n"}{end}`)
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		pods = append(pods, pod{f[0], f[1], f[2:]})
	}
	blocks := blocksOf(ctx, t, l)
	checkBlocks(t, blocks, pods)
	lent := map[string]bool{}
	for _, b := range blocks {
		if b.lender == "n1" && b.node == "n2" && b.cidr.IsSingleIP() {
			lent[b.cidr.Addr().String()] = true
		}
	}
	if len(pods) != each*len(l.Nodes()) || len(lent) != 2 || len(blocks) != len(pods)+len(lent) {
		t.Fatalf("%d pods, and blocks %v: want eight, and two addresses that n1 lends to n2", len(pods), blocks)
	}
	for i, from := range pods {
		for _, to := range slices.Concat(pods[i+1:], before[:1]) {
			if to.node != from.node && (i%each == 0 || lent[to.ips[0]]) {
				reaches(ctx, t, l, from, net.JoinHostPort(to.ips[0], "8080"), to.name)
				reaches(ctx, t, l, to, net.JoinHostPort(from.ips[0], "8080"), from.name)
			}
		}
	}
	step("pods reach each other")
	eventually(t, patience, "the books fit", func() error {
		out, err := l.Kubectl(ctx, "exec", "-n", "heddle-system", "daemonset/heddle", "-c", "agent", "--", "/heddle", "ipam", "check")
		if err == nil && !strings.Contains(out, "all fits") {
			err = fmt.Errorf("it says %q", out)
		}
		return err
	})

	kubectl(ctx, t, l, "delete", "pods", "-l", "app=more", "--wait=true")
	step("pods are gone")
	kubectl(ctx, t, l, "delete", "ippools.crd.projectcalico.org", "more")
	eventually(t, patience, "the blocks are given back", func() error {
		if left := blocksOf(ctx, t, l); len(left) > 0 {
			return fmt.Errorf("%v are left", left)
		}
		return nil
	})
	step("blocks are given back")
	reaches(ctx, t, l, before[0], net.JoinHostPort(before[1].ips[0], "8080"), before[1].name)
}

// checkBlocks: they are the pool's, apart from each other but for what is lent, and each pod has an address of one of
// its node's.
func checkBlocks(t *testing.T, blocks []heldBlock, pods []pod) {
	t.Helper()
	pool := netip.MustParsePrefix("10.245.0.0/27")
	for i, b := range blocks {
		for _, o := range blocks[:i] {
			if o.cidr.Overlaps(b.cidr) && o.lender != b.node && b.lender != o.node {
				t.Errorf("%v and %v overlap", o, b)
			}
		}
		if !pool.Contains(b.cidr.Addr()) || b.cidr.Bits() != 30 && b.lender == "" {
			t.Errorf("%v is no block of the pool", b)
		}
	}
	for _, p := range pods {
		if !slices.ContainsFunc(blocks, func(b heldBlock) bool {
			return b.node == p.node && b.cidr.Contains(netip.MustParseAddr(p.ips[0]))
		}) {
			t.Errorf("%s on %s has %v, of none of its node's blocks: %v", p.name, p.node, p.ips, blocks)
		}
	}
}
