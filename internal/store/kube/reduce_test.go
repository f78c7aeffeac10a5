package kube

import (
	"encoding/json"
	"maps"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/heddle-net/heddle/internal/dialect"
	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
)

func aPod() *corev1.Pod {
	always := corev1.ContainerRestartPolicyAlways
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "dev", Name: "web-0", UID: "u1", ResourceVersion: "7", Labels: map[string]string{"app": "web"}},
		Spec: corev1.PodSpec{
			NodeName: "node-1", ServiceAccountName: "web",
			Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
				{Name: "http", ContainerPort: 80}, {ContainerPort: 81}, {Name: "dns", ContainerPort: 53, Protocol: corev1.ProtocolUDP},
			}}},
			InitContainers: []corev1.Container{
				{Ports: []corev1.ContainerPort{{Name: "over", ContainerPort: 1}}},
				{RestartPolicy: &always, Ports: []corev1.ContainerPort{{Name: "side", ContainerPort: 2, Protocol: corev1.ProtocolSCTP}}},
			},
		},
		Status: corev1.PodStatus{PodIPs: []corev1.PodIP{{IP: "10.244.1.5"}, {IP: "fd00::5"}, {IP: "127.0.0.1"}, {IP: "nonsense"}}},
	}
}

func TestPodBecomesEndpoint(t *testing.T) {
	x := newTexts()
	got := x.reducePod(aPod())
	want := &model.Endpoint{
		Node: "node-1", Namespace: "dev", Name: "web-0", UID: "u1", ServiceAccount: "web", Labels: map[string]string{"app": "web"},
		Addresses: []netip.Addr{netip.MustParseAddr("10.244.1.5"), netip.MustParseAddr("fd00::5")},
		Ports:     []model.NamedPort{{Name: "http", Protocol: 6, Port: 80}, {Name: "dns", Protocol: 17, Port: 53}, {Name: "side", Protocol: 132, Port: 2}},
	}
	if !reflect.DeepEqual(got.object, model.Object(want)) || got.key != want.Key() || got.version != "7" {
		t.Errorf("got %+v %+v, want %+v", got, got.object, want)
	}
	for name, change := range map[string]func(*corev1.Pod){
		"no node yet":  func(p *corev1.Pod) { p.Spec.NodeName = "" },
		"host network": func(p *corev1.Pod) { p.Spec.HostNetwork = true },
		"succeeded":    func(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded },
		"failed":       func(p *corev1.Pod) { p.Status.Phase = corev1.PodFailed },
	} {
		p := aPod()
		change(p)
		if got := x.reducePod(p); got.object != nil || got.wrong != nil {
			t.Errorf("%s: got %+v", name, got.object)
		}
	}
	p := aPod()
	p.Status = corev1.PodStatus{}
	if e := x.reducePod(p).object.(*model.Endpoint); len(e.Addresses) > 0 {
		t.Errorf("addresses %v of a pod that has none yet", e.Addresses)
	}
	p.Status.PodIP = "10.244.1.6"
	if e := x.reducePod(p).object.(*model.Endpoint); len(e.Addresses) != 1 {
		t.Error("a server that tells only podIP is not understood")
	}
	// The kubelet calls CNI with the static pod's own UID, not that of its mirror in the API server.
	p.Annotations = map[string]string{"kubernetes.io/config.mirror": "0123"}
	if e := x.reducePod(p).object.(*model.Endpoint); e.UID != "0123" {
		t.Errorf("UID %s of a static pod, want 0123", e.UID)
	}
}

func TestEqualLabelsShareTheirMemory(t *testing.T) {
	x := newTexts()
	a, b := x.reducePod(aPod()).object.(*model.Endpoint), x.reducePod(aPod()).object.(*model.Endpoint)
	if reflect.ValueOf(a.Labels).Pointer() != reflect.ValueOf(b.Labels).Pointer() {
		t.Error("two pods with equal labels have a map each")
	}
	for _, m := range []map[string]string{{"a": "bc"}, {"ab": "c"}, {"a": "b", "c": "d"}, {"a": "b"}} {
		for range 2 {
			if got := x.labels(m); !maps.Equal(got, m) {
				t.Errorf("labels %v became %v", m, got)
			}
		}
	}
	for i := range 2 * mostTexts {
		x.one(strings.Repeat("x", 1+i%7) + string(rune('a'+i%26)) + strings.Repeat("y", i%300))
		x.labels(map[string]string{"n": strings.Repeat("z", i)[:i%2000]})
	}
	if len(x.ones) > mostTexts || len(x.sets) > mostTexts {
		t.Errorf("%d texts and %d sets are kept: not bounded", len(x.ones), len(x.sets))
	}
}

// TestResourcesKeepWhatPoliciesNeed: and dialect understands what is left.
func TestResourcesKeepWhatPoliciesNeed(t *testing.T) {
	x := newTexts()
	port, tcp := int32(80), corev1.ProtocolTCP
	meta := metav1.ObjectMeta{
		Namespace: "dev", Name: "a", UID: "u", ResourceVersion: "1", Generation: 3, Labels: map[string]string{"l": "v"},
		Annotations:   map[string]string{"kubectl.kubernetes.io/last-applied-configuration": "{}"},
		ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "kubectl"}}, CreationTimestamp: metav1.Now(),
	}
	slice := meta
	slice.Labels = map[string]string{discoveryv1.LabelServiceName: "web"}
	yes := true
	for want, got := range map[string]*thin{
		`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"a","labels":{"l":"v"}}}`: x.reduceBuiltIn(&corev1.Namespace{
			ObjectMeta: metav1.ObjectMeta{Name: "a", Labels: meta.Labels, UID: "u"}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive},
		}),
		`{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"a","namespace":"dev","labels":{"l":"v"}}}`: x.reduceBuiltIn(&corev1.ServiceAccount{
			ObjectMeta: meta, Secrets: []corev1.ObjectReference{{Name: "secret"}},
		}),
		`{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"a","namespace":"dev","labels":{"l":"v"}},"spec":{"podSelector":{},"policyTypes":["Ingress"]}}`: x.reduceBuiltIn(&networkingv1.NetworkPolicy{
			ObjectMeta: meta, Spec: networkingv1.NetworkPolicySpec{PolicyTypes: []networkingv1.PolicyType{"Ingress"}},
		}),
		`{"apiVersion":"discovery.k8s.io/v1","kind":"EndpointSlice","metadata":{"name":"a","namespace":"dev","labels":{"kubernetes.io/service-name":"web"}},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"]}],"ports":[{"protocol":"TCP","port":80}]}`: x.reduceBuiltIn(&discoveryv1.EndpointSlice{
			ObjectMeta: slice, AddressType: "IPv4", Ports: []discoveryv1.EndpointPort{{Port: &port, Protocol: &tcp}},
			Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1"}, Conditions: discoveryv1.EndpointConditions{Ready: &yes}}},
		}),
		`{"apiVersion":"crd.projectcalico.org/v1","kind":"GlobalNetworkSet","metadata":{"name":"a","labels":{"l":"v"}},"spec":{"nets":["10.0.0.0/8"]}}`: x.reduceCustom("crd.projectcalico.org/v1", "GlobalNetworkSet", false)(&unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "crd.projectcalico.org/v1", "kind": "GlobalNetworkSet", "status": map[string]any{"x": 1},
			"metadata": map[string]any{"name": "a", "labels": map[string]any{"l": "v"}, "uid": "u", "managedFields": []any{}, "resourceVersion": "1"},
			"spec":     map[string]any{"nets": []any{"10.0.0.0/8"}},
		}}),
	} {
		r, _ := got.object.(*model.Resource)
		if r == nil {
			t.Errorf("nothing became of %s: %v", want, got.wrong)
			continue
		}
		if !sameJSON(t, want, string(r.Body)) || got.key != r.Key() {
			t.Errorf("got %s\nwant %s", r.Body, want)
		}
		if _, err := dialect.Object(r); err != nil {
			t.Errorf("%s: %v", r, err)
		}
	}
	if got := x.reduceCustom("crd.projectcalico.org/v1", "Tier", false)(&unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{"name": "A_B"}}}); got.object != nil || got.wrong == nil {
		t.Errorf("a name that is none was taken: %+v", got.object)
	}
}

func sameJSON(t *testing.T, a, b string) bool {
	var x, y any
	if err := json.Unmarshal([]byte(a), &x); err != nil {
		t.Fatal(err)
	}
	return json.Unmarshal([]byte(b), &y) == nil && reflect.DeepEqual(x, y)
}

func aNode() *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: "node-1", ResourceVersion: "9", Annotations: map[string]string{NodeAnnotation: "{}", "other": "x"}},
		Spec:       corev1.NodeSpec{PodCIDRs: []string{"10.244.1.0/24", "fd00:1::/64", "10.244.1.7/24", "x"}},
		Status: corev1.NodeStatus{
			Addresses:  []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: "192.168.0.1"}, {Type: corev1.NodeHostName, Address: "10.0.0.1"}, {Type: corev1.NodeExternalIP, Address: "8.8.8.8"}},
			Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady, Status: "True"}, {Type: corev1.NodeNetworkUnavailable, Status: "False", Reason: "FlannelIsUp"}},
		},
	}
}

func TestSettingsKeepWhatIsSaidToHeddle(t *testing.T) {
	got := newTexts().reduceCustom("crd.projectcalico.org/v1", "BGPPeer", true)(&unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"name": "a", "uid": "u", "annotations": map[string]any{"heddle.net/bfd": "true", "projectcalico.org/metadata": "{}"}},
		"spec":     map[string]any{"peerIP": "192.0.2.1"}, "status": map[string]any{"x": 1},
	}})
	s, ok := got.object.(*model.Setting)
	const want = `{"apiVersion":"crd.projectcalico.org/v1","kind":"BGPPeer","metadata":{"name":"a","annotations":{"heddle.net/bfd":"true"}},"spec":{"peerIP":"192.0.2.1"}}`
	if !ok || !sameJSON(t, want, string(s.Body)) || got.key != s.Key() {
		t.Fatalf("got %v %s", got, s.Body)
	}
	if err := dialect.Check(&s.Resource); err != nil {
		t.Error(err)
	}
}

func TestNodesHaveLabelsAndTheirPlaceInBGP(t *testing.T) {
	o := aNode()
	o.Labels = map[string]string{"rack": "1"}
	o.Annotations[asnAnnotation], o.Annotations[clusterAnnotation] = "65001", "244.0.0.1"
	f := reduceNode(o).node
	n := &model.Node{Name: "node-1", Labels: map[string]string{"old": ""}, ASN: 7}
	f.overlay(n)
	if n.Labels["rack"] != "1" || len(n.Labels) != 1 || n.ASN != 65001 || n.ClusterID.String() != "244.0.0.1" {
		t.Errorf("got %+v", n)
	}
	o.Labels, o.Annotations[asnAnnotation], o.Annotations[clusterAnnotation] = nil, "-1", "fd00::1"
	n = &model.Node{Name: "node-1", Labels: map[string]string{"own": ""}, ASN: 7}
	reduceNode(o).node.overlay(n)
	if len(n.Labels) != 1 || n.ASN != 7 || n.ClusterID.IsValid() {
		t.Errorf("of what makes no sense: got %+v", n)
	}
}

func TestPodsHaveTheirWishes(t *testing.T) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "dev", Name: "a", Annotations: map[string]string{"cni.projectcalico.org/ipAddrs": `["10.0.0.7"]`}}, Spec: corev1.PodSpec{NodeName: "n1"}}
	e, ok := newTexts().reducePod(p).object.(*model.Endpoint)
	if !ok || e.Wishes == nil || len(e.Wishes.Addresses) != 1 {
		t.Errorf("got %+v", e)
	}
	p.Annotations = nil
	if e := newTexts().reducePod(p).object.(*model.Endpoint); e.Wishes != nil {
		t.Errorf("got %+v of a pod without any", e.Wishes)
	}
}

func TestNodeObjectIsReducedToItsFacts(t *testing.T) {
	got := reduceNode(aNode())
	want := &nodeFacts{
		version: "9", said: said{node: "{}"}, ranges: []netip.Prefix{netip.MustParsePrefix("10.244.1.0/24"), netip.MustParsePrefix("fd00:1::/64")},
		addrs: []netip.Addr{netip.MustParseAddr("192.168.0.1")}, unavailable: "False/FlannelIsUp",
	}
	if got.name != "node-1" || !reflect.DeepEqual(got.node, want) {
		t.Errorf("got %+v, want %+v", got.node, want)
	}
	old := aNode()
	old.Spec = corev1.NodeSpec{PodCIDR: "10.244.2.0/24"}
	if got := reduceNode(old); len(got.node.ranges) != 1 {
		t.Errorf("ranges %v of a node with only podCIDR", got.node.ranges)
	}
	long := aNode()
	long.Annotations[NodeAnnotation] = strings.Repeat("x", 250<<10)
	if got := reduceNode(long); len(got.node.said.node) > maxNode+1 {
		t.Errorf("%d bytes of an annotation are kept", len(got.node.said.node))
	} else if _, err := nodeOf("node-1", got.node.said); err == nil || len(err.Error()) > 500 {
		t.Errorf("an annotation that is too long: %v", err)
	}
}

const vxlanData = `{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}`

func TestAnnotationsBecomeNode(t *testing.T) {
	flanneld := said{manager: "true", backend: "vxlan", data: vxlanData, publicIP: "192.168.0.4"}
	ours := said{node: `{"name":"a","address4":"192.168.0.5","vtep4":"02:00:00:00:00:01","accepts":["vxlan"],"version":"1"}`}
	both := ours
	both.manager, both.backend, both.data, both.publicIP = "true", "vxlan", vxlanData, "192.168.0.5"
	taken := both
	taken.publicIP = "192.168.0.4"
	device := both
	device.data = `{"VNI":1,"VtepMAC":"02:00:00:00:00:02"}`
	gateway := said{manager: "true", backend: "host-gw", data: "null", publicIP: "192.168.0.4"}
	for name, c := range map[string]struct {
		said said
		want string // version, address, VTEP, accepts; empty: no node
	}{
		"nobody":                              {said{}, ""},
		"annotation of another manager":       {said{backend: "vxlan", data: vxlanData, publicIP: "192.168.0.4"}, ""},
		"flanneld":                            {flanneld, "flanneld 192.168.0.4 02:00:00:00:00:01 [vxlan]"},
		"flanneld with host-gw":               {gateway, "flanneld 192.168.0.4  []"},
		"ours alone":                          {ours, "1 192.168.0.5 02:00:00:00:00:01 [vxlan]"},
		"ours with Flannel's":                 {both, "1 192.168.0.5 02:00:00:00:00:01 [vxlan]"},
		"a flanneld took over, other address": {taken, "flanneld 192.168.0.4 02:00:00:00:00:01 [vxlan]"},
		"a flanneld took over, other device":  {device, "flanneld 192.168.0.5 02:00:00:00:00:02 [vxlan]"},
	} {
		n, err := nodeOf("a", c.said)
		got := ""
		if n != nil {
			got = strings.Join([]string{n.Version, n.Address4.String(), n.VTEP4, sprint(n.Accepts)}, " ")
		}
		if err != nil || got != c.want {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, c.want)
		}
	}
	for name, s := range map[string]said{
		"another's name":  {node: `{"name":"b","address4":"192.168.0.5"}`},
		"no address":      {node: `{"name":"a"}`},
		"no JSON":         {node: `{`},
		"loopback":        {node: `{"name":"a","address4":"127.0.0.1"}`},
		"flanneld's none": {manager: "true"},
	} {
		if n, err := nodeOf("a", s); err == nil || n != nil {
			t.Errorf("%s was taken: %+v", name, n)
		}
	}
}

func sprint(p []model.Path) string {
	var s []string
	for _, x := range p {
		s = append(s, string(x))
	}
	return "[" + strings.Join(s, " ") + "]"
}

// TestFlannelIsToldWhatItNeeds: what Put writes for a flanneld is read as the same node by our own reading.
func TestFlannelIsToldWhatItNeeds(t *testing.T) {
	pools := func(text string) map[string]model.Pool {
		list, err := flannel.ParseNetConf([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]model.Pool{}
		for _, p := range list {
			m[p.Name] = p
		}
		return m
	}
	n := &model.Node{Name: "a", Address4: netip.MustParseAddr("192.168.0.5"), Address6: netip.MustParseAddr("fd00::5"), VTEP4: "02:00:00:00:00:01", VTEP6: "02:00:00:00:00:02"}
	for name, c := range map[string]struct {
		conf string
		keys int
	}{
		"vxlan":   {`{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan"}}`, 4},
		"dual":    {`{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"fd00:1::/48","Backend":{"Type":"vxlan"}}`, 6},
		"host-gw": {`{"Network":"10.244.0.0/16","Backend":{"Type":"host-gw"}}`, 4},
		"alloc":   {`{"Network":"10.244.0.0/16","Backend":{"Type":"alloc"}}`, 4},
	} {
		l, tell := lease(n, pools(c.conf))
		a, err := l.Annotations()
		if err != nil || !tell || len(a) != c.keys {
			t.Errorf("%s: %v, %v, %v", name, a, tell, err)
			continue
		}
		s := saidOf(a)
		got, err := nodeOf("a", s)
		if err != nil || got == nil || got.Version != "flanneld" {
			t.Errorf("%s: read as %+v, %v", name, got, err)
		}
		text, _ := json.Marshal(n)
		s.node = string(text)
		if got, err := nodeOf("a", s); err != nil || !reflect.DeepEqual(got, n) {
			t.Errorf("%s: with our own annotation it is read as %+v, %v", name, got, err)
		}
	}
	if _, tell := lease(n, nil); tell {
		t.Error("without pools, a flanneld is told something")
	}
}

// FuzzNodeOf: whatever stands in annotations becomes a valid node of just that name, or none.
func FuzzNodeOf(f *testing.F) {
	f.Add(`{"name":"a","address4":"192.168.0.5"}`, "true", "vxlan", vxlanData, "", "192.168.0.5", "")
	f.Add("", "true", "vxlan", vxlanData, vxlanData, "192.168.0.5", "fd00::1")
	f.Add("", "true", "host-gw", "null", "null", "192.168.0.5", "fd00::1")
	f.Add(`{"name":"a","address4":"192.168.0.5","uplinks":[{"link":"eth0","prefix":"192.168.0.5/24","mtu":1500}]}`, "", "", "", "", "", "")
	f.Fuzz(func(t *testing.T, node, manager, backend, data, data6, ip, ip6 string) {
		o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "a", Annotations: map[string]string{
			NodeAnnotation: node, flannel.SubnetManagerAnnotation: manager, flannel.BackendTypeAnnotation: backend,
			flannel.BackendDataAnnotation: data, flannel.BackendV6DataAnnotation: data6, flannel.PublicIPAnnotation: ip, flannel.PublicIPv6Annotation: ip6,
		}}}
		n, err := nodeOf("a", reduceNode(o).node.said)
		if err != nil {
			if n != nil || strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Fatalf("%+v with error %q", n, err)
			}
			return
		}
		if n != nil && (n.Name != "a" || n.Validate() != nil) {
			t.Fatalf("taken: %+v, %v", n, n.Validate())
		}
	})
}
