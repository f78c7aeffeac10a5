package dialect

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/heddle-net/heddle/internal/model"
)

// FuzzReadYAML asks that no text does harm, that what is refused is refused whole and in one sentence, and that
// what is accepted can be stored, written out, read again and understood.
func FuzzReadYAML(f *testing.F) {
	for _, text := range []string{
		denyAll,
		"---\n" + denyAll + "...\n--- {apiVersion: v1, kind: Namespace, metadata: {name: dev, labels: {a: b}}}\n",
		"apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: p, labels: &l {a: b}}\n- apiVersion: v1\n  kind: Pod\n  metadata: {name: q, labels: *l}\n",
		"apiVersion: networking.k8s.io/v1\nkind: NetworkPolicyList\nitems: [{metadata: {name: a}, spec: {ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: 1, endPort: 2}]}]}, status: {}}]\n",
		"{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {name: a}, spec: {tier: Admin, priority: 1, subject: {namespaces: {}}, egress: [{action: Deny, to: [{networks: [10.0.0.0/8]}]}]}}",
		"{apiVersion: projectcalico.org/v3, kind: GlobalNetworkPolicy, metadata: {name: a}, spec: {selector: has(a), order: 1e3, ingress: [{action: Allow, protocol: TCP, destination: {ports: [80, '1:2']}}]}}",
		"{\"apiVersion\": \"projectcalico.org/v3\", \"kind\": \"Tier\", \"metadata\": {\"name\": \"t\"}, \"spec\": {\"order\": 10}}",
		"{apiVersion: v1, kind: Pod, metadata: {name: p, creationTimestamp: null}, spec: {containers: [{name: c, ports: [{name: x, containerPort: 080}], resources: {limits: {cpu: 1e9}}}]}}",
		"{apiVersion: projectcalico.org/v3, kind: IPPool, metadata: {name: p}, spec: {cidr: 10.0.0.0/16, ipipMode: CrossSubnet, blockSize: 26, nodeSelector: all()}}",
		"{apiVersion: crd.projectcalico.org/v1, kind: BGPPeer, metadata: {name: p, annotations: {heddle.net/bfd: 300ms x3}}, spec: {peerIP: '[fd00::1]:179', asNumber: 1.10, filters: [a]}}",
		"%YAML 1.1\n---\n!!map {? apiVersion : v1}\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		before := bytes.Clone(text)
		found, err := ReadYAML(text)
		if !bytes.Equal(text, before) {
			t.Fatal("the text changed")
		}
		if err != nil {
			var bad *model.FieldError
			if found != nil || !errors.As(err, &bad) || bad.Noun == "" || bad.Field == "" || bad.Want == "" {
				t.Fatalf("%d objects, %v", len(found), err)
			}
			return
		}
		var bodies [][]byte
		for i := range found {
			r := &found[i]
			if err := r.Validate(); err != nil {
				t.Fatal(err)
			}
			one := *r
			if err := SetNamespace(&one, "default"); err != nil {
				t.Fatal(err)
			}
			if err := Check(&one); err != nil {
				t.Fatal(err)
			}
			if k, _ := kindOf(&one); !k.Setting {
				if _, err := Object(&one); err != nil {
					t.Fatal(err)
				}
			}
			bodies = append(bodies, r.Body)
		}
		again, err := ReadYAML(bytes.Join(bodies, []byte("\n---\n")))
		// JSON escapes text that YAML has no escapes for; all else reads the same.
		if err == nil && !reflect.DeepEqual(again, found) {
			t.Fatalf("read again:\n%s\nfirst:\n%s", again, found)
		}
	})
}
