package cli

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
)

func web(node string, labels map[string]string) *model.Endpoint {
	return &model.Endpoint{Node: node, Link: "hd1", Namespace: "dev", Name: "web", Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.2")}, Labels: labels}
}

func TestLabelMakesChangesAndTakesAwayLabelsOfAPodThatRuns(t *testing.T) {
	c := newTerminal(t)
	c.put(web("n1", map[string]string{"app": "web", "zone": "a"}))
	table := func(labels string) {
		t.Helper()
		c.says("get pods -n dev", "NAME   NODE   ADDRESSES    LABELS\nweb    n1     10.244.1.2   "+labels+"\n")
	}
	table("app=web,zone=a")
	c.says("label pod web tier=front example.org/canary= -n dev", "pod/web labeled\n")
	table("app=web,example.org/canary=,tier=front,zone=a")
	c.says("label pod web tier=front app=web -n dev", "pod/web not labeled\n")
	c.fails("label pod web tier=back -n dev", "Pod dev/web: label tier is front already: --overwrite changes it")
	c.fails("label pod web app=db -n dev", "Pod dev/web: label app is web already: --overwrite changes it")
	c.says("label pod/web tier=back app=db -n dev --overwrite", "pod/web labeled\n")
	table("app=db,example.org/canary=,tier=back,zone=a")
	c.says("label po web tier- example.org/canary- -n dev", "pod/web unlabeled\n")
	table("app=db,zone=a")
	c.says("label pod web app- -n dev", "pod/web unlabeled\n") // what the runtime gave shows again
	table("app=web,zone=a")
	c.fails("label pod web zone- -n dev", "Pod dev/web: label zone=a is its runtime's: --overwrite can give it another value, nothing can take it away")
	it, err := c.store.Get(context.Background(), model.KindResource, "Pod:dev:web")
	if want := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"web","namespace":"dev"}}`; err != nil || string(it.Object.(*model.Resource).Body) != want {
		t.Errorf("the store has %s, %v: want %s", it.Object.(*model.Resource).Body, err, want)
	}
}

func TestLabelOfAPodThatDoesNotRunIsForOneThatComes(t *testing.T) {
	c := newTerminal(t)
	c.says("label pod web app=web -n dev", "no workload dev/web runs now: the labels are for one that comes\npod/web labeled\n")
	c.says("get pods -n dev", "NAME   NODE   ADDRESSES   LABELS\nweb    -      -           app=web\n")
	c.put(web("n1", nil))
	c.says("get pods -n dev", "NAME   NODE   ADDRESSES    LABELS\nweb    n1     10.244.1.2   app=web\n")
}

func TestLabelOfOtherKinds(t *testing.T) {
	c := newTerminal(t)
	c.says("label namespace dev team=a", "namespace/dev labeled\n")
	c.says("get ns", "NAME   LABELS\ndev    kubernetes.io/metadata.name=dev,team=a\n")
	c.fails("label gnetset bad threat=yes", "globalnetworkset \"bad\" is not there: see `heddle get globalnetworkset`")
	c.types("apply -f " + c.file("a.yaml", "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata: {name: bad}\nspec: {nets: [198.51.100.0/24]}\n"))
	c.says("label gnetset bad threat=yes", "globalnetworkset/bad labeled\n")
	c.says("get gnetset bad", "NAME   NETS              LABELS\nbad    198.51.100.0/24   threat=yes\n")
}

func TestLabelsThatMakeNoSenseAreRefusedByName(t *testing.T) {
	c := newTerminal(t)
	const characters = "63 characters of [A-Za-z0-9_.-] that begin and end with a letter or digit"
	for args, want := range map[string]string{
		"pod web":        "label (empty): want KEY=VALUE, or KEY- to take one away",
		"pod web a=b c":  "label c: want KEY=VALUE, or KEY- to take one away",
		"pod web a=b a-": "label a: want every key once",
		"pod web =b":     "label's key (empty): want 1.." + characters + ", perhaps with a domain and a slash before",
		"pod web a=b/c":  "label's value b/c: want nothing, or at most " + characters,
		"pod web " + "a=" + strings.Repeat("x", 64): "label's value " + strings.Repeat("x", 64) + ": want nothing, or at most " + characters,
		"pod a=b": "name (empty): want the pod to label",
	} {
		c.fails("label "+args, "heddle label: "+want)
	}
}

func TestManyWhoLabelAtOnceLoseNothing(t *testing.T) {
	c := newTerminal(t)
	c.put(web("n1", nil))
	var wg sync.WaitGroup
	var want []string
	for i := range 8 {
		want = append(want, fmt.Sprintf("l%d=x", i))
		wg.Go(func() { c.says(fmt.Sprintf("label pod web l%d=x -n dev", i), "pod/web labeled\n") })
	}
	wg.Wait()
	c.says("get pods -n dev", "NAME   NODE   ADDRESSES    LABELS\nweb    n1     10.244.1.2   "+strings.Join(want, ",")+"\n")
}

func TestGetPodsShowsEachWorkloadOnceWithAllOfIt(t *testing.T) {
	c := newTerminal(t)
	second := web("n1", nil)
	second.Link, second.Addresses = "hd2", []netip.Addr{netip.MustParseAddr("fd00::2")}
	nameless := web("n2", nil)
	nameless.Namespace, nameless.Name = "", ""
	c.put(web("n1", map[string]string{"app": "web"}), second, nameless)
	c.says("get pods", "nothing found in namespace default\n")
	c.says("get pods -A", "NAMESPACE   NAME     NODE   ADDRESSES            LABELS\n            n2:hd1   n2     10.244.1.2           -\ndev         web      n1     10.244.1.2,fd00::2   app=web\n")
	c.says("get pod web -n dev -o yaml", `apiVersion: v1
kind: Pod
metadata:
  labels:
    app: web
  name: web
  namespace: dev
spec:
  nodeName: n1
status:
  podIPs:
  - ip: 10.244.1.2
  - ip: fd00::2
`)
	again := c.file("again.yaml", c.types("get pod web -n dev -o yaml"))
	c.says("apply -f "+again, "pod/web created\n")
}
