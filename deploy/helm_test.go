package deploy_test

import (
	"encoding/json"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"helm.sh/helm/v4/pkg/chart/common"
	"helm.sh/helm/v4/pkg/chart/common/util"
	"helm.sh/helm/v4/pkg/chart/v2/loader"
	"helm.sh/helm/v4/pkg/engine"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/dialect/flannel"
	"github.com/heddle-net/heddle/internal/model"
)

// render is what `helm template -n NAMESPACE heddle helm/heddle -f VALUES` prints.
func render(t *testing.T, namespace, values string) (all []*unstructured.Unstructured) {
	t.Helper()
	chart, err := loader.Load("helm/heddle")
	if err != nil {
		t.Fatal(err)
	}
	set := map[string]any{}
	if err := yaml.Unmarshal([]byte(values), &set); err != nil {
		t.Fatal(err)
	}
	v, err := util.ToRenderValues(chart, set, common.ReleaseOptions{Name: "heddle", Namespace: namespace, IsInstall: true}, common.DefaultCapabilities)
	if err != nil {
		t.Fatal(err)
	}
	files, err := engine.Render(chart, v)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		all = append(all, objectsOf(t, name, []byte(files[name]))...)
	}
	return all
}

// parsed is an object with the texts of the ConfigMap as the values that they are.
func parsed(t *testing.T, u *unstructured.Unstructured) map[string]any {
	t.Helper()
	object := u.DeepCopy().Object
	if u.GetKind() == "ConfigMap" {
		data := object["data"].(map[string]any)
		for key, text := range data {
			var v any
			if err := yaml.Unmarshal([]byte(text.(string)), &v); err != nil {
				t.Fatalf("%s: %v", key, err)
			}
			data[key] = v
		}
	}
	return object
}

func TestChartRendersTheManifest(t *testing.T) {
	want := map[string]map[string]any{}
	for _, u := range objects(t, manifest) {
		if u.GetKind() != "Namespace" { // helm install --create-namespace makes it
			want[u.GetKind()+" "+u.GetName()] = parsed(t, u)
		}
	}
	got := map[string]map[string]any{}
	for _, u := range render(t, "heddle-system", "") {
		got[u.GetKind()+" "+u.GetName()] = parsed(t, u)
	}
	for key := range want {
		if got[key] == nil {
			t.Errorf("the chart has no %s", key)
		} else if !reflect.DeepEqual(got[key], want[key]) {
			g, _ := yaml.Marshal(got[key])
			w, _ := yaml.Marshal(want[key])
			t.Errorf("%s: only in the chart %q, only in the manifest %q", key, lines(string(g), string(w)), lines(string(w), string(g)))
		}
	}
	for key := range got {
		if want[key] == nil {
			t.Errorf("the manifest has no %s", key)
		}
	}
}

// settings are what an agent of these objects is told.
func settings(t *testing.T, all []*unstructured.Unstructured) ([]model.Pool, config.Config) {
	t.Helper()
	data, _, err := unstructured.NestedStringMap(find(t, all, "ConfigMap", "heddle").Object, "data")
	if err != nil {
		t.Fatal(err)
	}
	net, err := flannel.ParseNetConf([]byte(data["net-conf.json"]))
	if err != nil {
		t.Fatalf("%v in %s", err, data["net-conf.json"])
	}
	c, err := config.Parse([]byte(data["heddle.yaml"]))
	if err != nil {
		t.Fatal(err)
	}
	c.Node = "a" // of --node
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return net, c
}

func TestManifestsConfigurationIsTaken(t *testing.T) {
	_, c := settings(t, objects(t, manifest))
	if c.Store.Type != config.StoreKubernetes || c.NetConf != "/etc/heddle/net-conf.json" {
		t.Errorf("%+v", c)
	}
}

func TestChartsValuesSayWhatTheyName(t *testing.T) {
	all := render(t, "net", `
image: {repository: registry.example/heddle, tag: v1, pullPolicy: Always, pullSecrets: [{name: s}]}
network: ""
ipv6Network: fd00:10:244::/56
backend: {type: vxlan, options: {DirectRouting: true, Port: 4789}}
mtu: 1600
features: {clusterNetworkPolicy: false, calicoPolicy: false}
resources: {limits: {memory: 1Gi}}
config: {attachment: routed, store: {kubeconfig: /x}}
apiServer: {host: 192.168.0.1, port: 443}
`)
	net, c := settings(t, all)
	text, err := json.Marshal(net)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"fd00:10:244::/56", "4789"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("net-conf.json is read as %s: want %s", text, want)
		}
	}
	if strings.Contains(string(text), "10.244.0.0") {
		t.Errorf("net-conf.json has the IPv4 network: %s", text)
	}
	if c.Attachment != model.AttachRouted || c.Store.Type != config.StoreKubernetes || c.Store.Kubeconfig != "/x" {
		t.Errorf("heddle.yaml is read as %+v", c)
	}
	rendered := ""
	for _, u := range all {
		if ns := u.GetNamespace(); ns != "" && ns != "net" {
			t.Errorf("%s %s is in namespace %s", u.GetKind(), u.GetName(), ns)
		}
		b, err := yaml.Marshal(u.Object)
		if err != nil {
			t.Fatal(err)
		}
		rendered += string(b)
	}
	for _, want := range []string{"image: registry.example/heddle:v1\n", "imagePullPolicy: Always", "- name: s\n", "memory: 1Gi", "KUBERNETES_SERVICE_HOST", "value: 192.168.0.1", `value: "443"`, "system:serviceaccount:net:heddle"} {
		if !strings.Contains(rendered, want) {
			t.Errorf("nothing says %q", want)
		}
	}
	for _, unwanted := range []string{"heddle-system", "calico", "clusternetworkpolicies", "serviceaccounts", "endpointslices", "customresourcedefinitions"} {
		if strings.Contains(rendered, unwanted) {
			t.Errorf("something says %q", unwanted)
		}
	}
}
