package cli

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/embedded"
	"github.com/heddle-net/heddle/internal/store/etcd"
	"github.com/heddle-net/heddle/internal/store/storetest/etcdproc"
)

// terminal is somebody who types commands about a store of their own.
type terminal struct {
	t     *testing.T
	url   string
	store *etcd.Store
	dir   string
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	url := fmt.Sprintf("http://127.0.0.1:%d", etcdproc.FreePort(t))
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		done <- embedded.Run(ctx, embedded.Options{DataDir: t.TempDir() + "/store", Listen: []string{url}, Ready: func() { close(ready) }})
	}()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatal(err)
	}
	s, err := etcd.New(ctx, etcd.Options{Endpoints: []string{url}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = s.Close()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return &terminal{t, url, s, t.TempDir()}
}

// try types a command line, in words parted by spaces.
func (c *terminal) try(line string) (out string, code int) {
	c.t.Helper()
	var both bytes.Buffer
	code = Main(append(strings.Fields(line), "--endpoints", c.url), &both, &both)
	return both.String(), code
}

// types wants the command to have success, and returns what it printed.
func (c *terminal) types(line string) string {
	c.t.Helper()
	out, code := c.try(line)
	if code != 0 {
		c.t.Fatalf("heddle %s: exit %d: %s", line, code, out)
	}
	return out
}

// says wants the command to have success and print this.
func (c *terminal) says(line, want string) {
	c.t.Helper()
	if out := c.types(line); out != want {
		c.t.Errorf("heddle %s\ngot\n%swant\n%s", line, out, want)
	}
}

// fails wants the command to be refused in these words, and to change nothing.
func (c *terminal) fails(line, want string) {
	c.t.Helper()
	before := c.revisions()
	out, code := c.try(line)
	if code != 1 || out != "heddle: "+want+"\n" {
		c.t.Errorf("heddle %s: exit %d\ngot  %swant heddle: %s", line, code, out, want)
	}
	if after := c.revisions(); !reflect.DeepEqual(before, after) {
		c.t.Errorf("heddle %s: the store changed from %v to %v", line, before, after)
	}
}

func (c *terminal) revisions() []store.KeyRevision {
	c.t.Helper()
	var all []store.KeyRevision
	for _, kind := range []model.Kind{model.KindResource, model.KindSetting} {
		keys, err := c.store.Keys(context.Background(), kind, "")
		if err != nil {
			c.t.Fatal(err)
		}
		all = append(all, keys...)
	}
	return all
}

func (c *terminal) file(name, text string) string {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
	return path
}

func (c *terminal) put(objects ...model.Object) {
	c.t.Helper()
	for _, o := range objects {
		if _, err := c.store.Put(context.Background(), o, store.AnyRevision); err != nil {
			c.t.Fatal(err)
		}
	}
}

const denyAll = `apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all}
spec: {podSelector: {}, policyTypes: [Ingress]}
`

func TestApplySaysWhatItDidToEachObject(t *testing.T) {
	c := newTerminal(t)
	file := c.file("a.yaml", "apiVersion: v1\nkind: Namespace\nmetadata: {name: dev, annotations: {note: a<b&c}}\n---\n"+denyAll)
	c.says("apply -f "+file, "namespace/dev created\nnetworkpolicy/deny-all created\n")
	before := c.revisions()
	c.says("apply -f "+file, "namespace/dev unchanged\nnetworkpolicy/deny-all unchanged\n")
	if !reflect.DeepEqual(c.revisions(), before) {
		t.Error("what was unchanged was written")
	}
	c.file("a.yaml", strings.Replace(denyAll, "[Ingress]", "[Ingress, Egress]", 1))
	c.says("apply -f "+file, "networkpolicy/deny-all configured\n")
	it, err := c.store.Get(context.Background(), model.KindResource, "NetworkPolicy.networking.k8s.io:default:deny-all")
	if err != nil || !strings.Contains(string(it.Object.(*model.Resource).Body), "Egress") {
		t.Errorf("the store has %v, %v", it.Object, err)
	}
}

func TestApplyPutsWhatNamesNoNamespaceIntoThatOfTheFlag(t *testing.T) {
	c := newTerminal(t)
	file := c.file("a.yaml", denyAll)
	c.says("apply -n dev -f "+file, "networkpolicy/deny-all created\n")
	c.says("get netpol -A", "NAMESPACE   NAME       TIER      ORDER   TYPES     SELECTS\ndev         deny-all   default   1000    Ingress   all\n")
	prod := c.file("b.yaml", strings.Replace(denyAll, "name: deny-all", "name: deny-all, namespace: prod", 1))
	c.fails("apply -n dev -f "+prod, prod+": NetworkPolicy prod/deny-all: metadata.namespace prod: want the namespace of --namespace, dev")
	c.says("apply -f "+prod, "networkpolicy/deny-all created\n")
	c.fails("apply -n Dev -f "+file, "heddle apply: --namespace Dev: want a lower-case RFC 1123 name")
}

func TestAWrongObjectInAnyFileChangesNothing(t *testing.T) {
	c := newTerminal(t)
	good := c.file("good.yaml", denyAll)
	bad := c.file("bad.yaml", denyAll+"---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: b}\nspec: {podSelector: {}, ingress: [{form: []}]}\n")
	for _, args := range []string{"-f " + good + " -f " + bad, "-f " + good + "," + bad, "-f " + good + " " + bad} {
		out, code := c.try("apply " + args)
		if code != 1 || !strings.HasPrefix(out, "heddle: "+bad+": document 2: NetworkPolicy b: ") || !strings.Contains(out, "form") || strings.Count(out, "\n") != 1 {
			t.Errorf("apply %s: exit %d: %s", args, code, out)
		}
	}
	again := c.file("again.yaml", denyAll)
	c.fails("apply -f "+good+" "+again, again+": NetworkPolicy default/deny-all: it is given twice: want each object once; it is in "+good+" too")
	empty := c.file("empty.yaml", "# nothing\n---\n")
	c.fails("apply -f "+empty, empty+": objects (empty): want at least one, in YAML or JSON")
	c.fails("apply -f "+filepath.Join(c.dir, "none.yaml"), "open "+filepath.Join(c.dir, "none.yaml")+": no such file or directory")
	c.fails("apply "+good, "heddle apply: --filename (empty): want a file with objects in YAML or JSON, or - for standard input")
	nets := "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: big, annotations: {a: \"" + strings.Repeat("<", 300_000) + "\"}}\n"
	big := c.file("big.yaml", denyAll+"---\n"+nets)
	if out, code := c.try("apply -f " + big); code != 1 || !strings.Contains(out, "size") {
		t.Errorf("an object that the store does not take: exit %d: %.300s", code, out)
	}
	if keys := c.revisions(); len(keys) != 0 {
		t.Errorf("the store has %v after bad input alone", keys)
	}
}

func TestApplyReadsStandardInput(t *testing.T) {
	c := newTerminal(t)
	f, err := os.Open(c.file("a.yaml", denyAll))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	stdin := os.Stdin
	os.Stdin = f
	defer func() { os.Stdin = stdin }()
	c.says("apply -f -", "networkpolicy/deny-all created\n")
}

// samples has one object of every kind that people can write, by its apiVersion and kind.
var samples = map[string]string{
	"v1 Namespace":                                           `{}`,
	"v1 Pod":                                                 `{"spec":{"containers":[{"name":"web","ports":[{"name":"http","containerPort":80}]}]}}`,
	"v1 ServiceAccount":                                      `{}`,
	"discovery.k8s.io/v1 EndpointSlice":                      `{"addressType":"IPv4","endpoints":[{"addresses":["10.244.1.2"]}],"ports":[{"port":80}]}`,
	"networking.k8s.io/v1 NetworkPolicy":                     `{"spec":{"podSelector":{"matchLabels":{"app":"web"}},"ingress":[{"ports":[{"port":80,"endPort":90}]}]}}`,
	"projectcalico.org/v3 NetworkPolicy":                     `{"spec":{"selector":"app == 'web'","order":1.5,"ingress":[{"action":"Allow","source":{"nets":["10.0.0.0/8"]}}]}}`,
	"projectcalico.org/v3 Tier":                              `{"spec":{"order":10,"defaultAction":"Pass"}}`,
	"projectcalico.org/v3 NetworkSet":                        `{"spec":{"nets":["10.0.0.0/8","fd00::/8"]}}`,
	"projectcalico.org/v3 HostEndpoint":                      `{"spec":{"node":"n1","interfaceName":"eth0","expectedIPs":["192.168.0.4"]}}`,
	"projectcalico.org/v3 GlobalNetworkSet":                  `{"spec":{"nets":["10.0.0.0/8"]}}`,
	"projectcalico.org/v3 GlobalNetworkPolicy":               `{"spec":{"selector":"all()","types":["Egress"]}}`,
	"projectcalico.org/v3 StagedNetworkPolicy":               `{"spec":{"stagedAction":"Set","selector":"all()"}}`,
	"projectcalico.org/v3 StagedGlobalNetworkPolicy":         `{"spec":{"stagedAction":"Delete"}}`,
	"projectcalico.org/v3 StagedKubernetesNetworkPolicy":     `{"spec":{"podSelector":{},"policyTypes":["Ingress"]}}`,
	"projectcalico.org/v3 IPPool":                            `{"spec":{"cidr":"10.7.0.0/16","ipipMode":"CrossSubnet"}}`,
	"projectcalico.org/v3 IPReservation":                     `{"spec":{"reservedCIDRs":["10.7.0.1"]}}`,
	"projectcalico.org/v3 IPAMConfiguration":                 `{"spec":{"strictAffinity":true}}`,
	"projectcalico.org/v3 IPAMConfig":                        `{"spec":{"strictAffinity":true}}`,
	"projectcalico.org/v3 BGPConfiguration":                  `{"spec":{"asNumber":64600}}`,
	"projectcalico.org/v3 BGPPeer":                           `{"spec":{"peerIP":"192.0.2.1","asNumber":65000}}`,
	"projectcalico.org/v3 BGPFilter":                         `{"spec":{"importV4":[{"action":"Reject"}]}}`,
	"projectcalico.org/v3 FelixConfiguration":                `{"spec":{"vxlanVNI":7}}`,
	"projectcalico.org/v3 Node":                              `{"spec":{"bgp":{"asNumber":65001}}}`,
	"policy.networking.k8s.io/v1alpha2 ClusterNetworkPolicy": `{"spec":{"tier":"Admin","priority":5,"subject":{"namespaces":{}},"ingress":[{"action":"Deny","from":[{"namespaces":{}}]}]}}`,
}

// sample writes a kind's sample, with a name of its own.
func sample(t *testing.T, k dialect.Kind, name string) string {
	t.Helper()
	text, ok := samples[k.APIVersion+" "+k.Kind]
	if !ok {
		text, ok = samples["projectcalico.org/v3 "+k.Kind]
	}
	if !ok {
		t.Fatalf("no sample of %s %s", k.APIVersion, k.Kind)
	}
	comma := ","
	if text == "{}" {
		comma = ""
	}
	return fmt.Sprintf(`{"apiVersion":%q,"kind":%q,"metadata":{"name":%q,"labels":{"some":"label"}}%s%s`, k.APIVersion, k.Kind, name, comma, text[1:])
}

func TestEveryKindIsWrittenShownByEachOfItsNamesAppliedAgainAndDeleted(t *testing.T) {
	c := newTerminal(t)
	for i, k := range dialect.Kinds() {
		name := fmt.Sprintf("x%d", i)
		if k.Kind == "NetworkPolicy" || strings.HasSuffix(k.Kind, "NetworkPolicy") {
			name = "default." + name
		}
		if slices.Contains([]string{"IPAMConfiguration", "IPAMConfig", "BGPConfiguration", "FelixConfiguration"}, k.Kind) {
			name = "default"
		}
		file := c.file(name+".json", sample(t, k, name))
		typed := kindName(k)
		c.says("apply -f "+file, typed+"/"+name+" created\n")
		words := []string{typed, k.Kind + "." + k.Group(), k.Plural + "." + k.Group()}
		if k.Group() == "" {
			words = []string{k.Kind, k.Plural}
		}
		for _, short := range k.Short {
			if first, _ := dialect.Lookup(short); first.Group() == k.Group() {
				words = append(words, short)
			}
		}
		for _, word := range words {
			for _, line := range []string{"get " + word, "get " + word + " " + name, "get " + word + "/" + name + " -o wide", "get -A " + word} {
				if out := c.types(line); !strings.Contains(out, name) || strings.Contains(out, "WRONG") {
					t.Errorf("heddle %s:\n%s", line, out)
				}
			}
		}
		for _, line := range []string{"get " + typed + " -o yaml", "get " + typed + "/" + name + " -o json"} {
			again := c.file("again", c.types(line))
			if out := c.types("apply -f " + again); strings.Contains(out, "configured") || strings.Contains(out, "created") || !strings.Contains(out, name+" unchanged") {
				t.Errorf("what heddle %s prints, applied again:\n%s", line, out)
			}
		}
		c.says("delete "+typed+"/"+name, fmt.Sprintf("%s %q deleted\n", typed, name))
		c.says("apply -f "+file, typed+"/"+name+" created\n")
		c.says("delete -f "+file, fmt.Sprintf("%s %q deleted\n", typed, name))
	}
	if keys := c.revisions(); len(keys) > 0 {
		t.Errorf("left over: %v", keys)
	}
}

func TestShortNameFindsAnObjectOfEitherGroupOfCalico(t *testing.T) {
	c := newTerminal(t)
	k := dialect.Kind{APIVersion: "crd.projectcalico.org/v1", Kind: "GlobalNetworkPolicy"}
	c.types("apply -f " + c.file("a.json", sample(t, k, "default.base")))
	for _, line := range []string{"get gnp", "get gnp default.base", "get globalnetworkpolicies"} {
		if out := c.types(line); !strings.Contains(out, "default.base") {
			t.Errorf("heddle %s: %s", line, out)
		}
	}
	c.fails("get globalnetworkpolicies.projectcalico.org default.base", "globalnetworkpolicy \"default.base\" is not there: see `heddle get globalnetworkpolicy`")
	c.says("delete gnp default.base", "globalnetworkpolicy.crd.projectcalico.org \"default.base\" deleted\n")
}

func TestLongestNamesThatKubernetesTakesFit(t *testing.T) {
	c := newTerminal(t)
	name := "default." + strings.Repeat("x", 245)
	namespace := strings.Repeat("n", 63)
	k := dialect.Kind{APIVersion: "crd.projectcalico.org/v1", Kind: "StagedNetworkPolicy"}
	c.types("apply -n " + namespace + " -f " + c.file("a.json", sample(t, k, name)))
	c.types("delete snp " + name + " -n " + namespace)
}

func TestGetOfNothingSaysSo(t *testing.T) {
	c := newTerminal(t)
	c.says("get netpol", "nothing found in namespace default\n")
	c.says("get netpol -A", "nothing found\n")
	c.says("get tiers -n dev", "nothing found\n")
	c.fails("get netpol a -n dev", "networkpolicy \"a\" is not there in namespace \"dev\": see `heddle get networkpolicy -n dev`")
	c.fails("get netpol a -A", "networkpolicy \"a\" is not there: see `heddle get networkpolicy -A`")
	c.fails("get netpol -o xml", "heddle get: --output xml: want yaml, json or wide")
	c.fails("get netpol A_B", "heddle get: name A_B: want a lower-case RFC 1123 name of at most 253 characters")
	out, code := c.try("get sheep")
	if code != 1 || !strings.HasPrefix(out, "heddle: heddle get: kind sheep: want one of namespaces, pods, ") {
		t.Errorf("exit %d: %s", code, out)
	}
}

func TestDeleteOfWhatIsNotThereFailsAfterTheRestIsDone(t *testing.T) {
	c := newTerminal(t)
	c.types("apply -f " + c.file("a.yaml", denyAll))
	c.fails("delete netpol deny", "networkpolicy \"deny\" is not there in namespace \"default\": see `heddle get networkpolicy -n default`")
	out, code := c.try("delete netpol gone deny-all")
	want := "networkpolicy \"deny-all\" deleted\nheddle: networkpolicy \"gone\" is not there in namespace \"default\": see `heddle get networkpolicy -n default`\n"
	if code != 1 || out != want {
		t.Errorf("exit %d: got\n%swant\n%s", code, out, want)
	}
	c.says("delete netpol gone --ignore-not-found", "")
	c.fails("delete netpol", "heddle delete: name (empty): want the networkpolicy to delete")
	c.fails("delete netpol/a b", "heddle delete: argument b: want KIND/NAME, as the one before")
}

func TestWhatCannotBeReadCanBeDeleted(t *testing.T) {
	c := newTerminal(t)
	key := "/heddle/v1/security/resources/NetworkPolicy.networking.k8s.io:default:broken"
	if _, err := c.store.Client().Put(context.Background(), key, "{"); err != nil {
		t.Fatal(err)
	}
	c.says("delete netpol broken", "networkpolicy \"broken\" deleted\n")
	if keys := c.revisions(); len(keys) > 0 {
		t.Errorf("left over: %v", keys)
	}
}

func TestManyWhoApplyAtOnceLoseNothing(t *testing.T) {
	c := newTerminal(t)
	var wg sync.WaitGroup
	for i := range 8 {
		file := c.file(fmt.Sprintf("%d.yaml", i), strings.Replace(denyAll, "{podSelector: {}", fmt.Sprintf("{podSelector: {matchLabels: {by: w%d}}", i), 1))
		wg.Go(func() {
			if out := c.types("apply -f " + file); out != "networkpolicy/deny-all created\n" && out != "networkpolicy/deny-all configured\n" {
				t.Errorf("got %s", out)
			}
		})
	}
	wg.Wait()
	if keys := c.revisions(); len(keys) != 1 {
		t.Errorf("the store has %v", keys)
	}
}

func TestRemovedNodesEndpointsGoToo(t *testing.T) {
	c := newTerminal(t)
	for _, n := range []string{"n1", "n10"} {
		c.put(&model.Node{Name: n, ID: n, Address4: netip.MustParseAddr("192.168.0.4")},
			&model.Heartbeat{Node: n, Renewed: time.Now().Add(-time.Hour), TTL: time.Minute},
			&model.Endpoint{Node: n, Link: "hd1", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2")}})
	}
	c.types("node remove n1")
	keys, err := c.store.Keys(context.Background(), model.KindEndpoint, "")
	if err != nil || len(keys) != 1 || keys[0].Key != "n10:hd1" {
		t.Errorf("endpoints %v, %v: want those of n10 alone", keys, err)
	}
}
