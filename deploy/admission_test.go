//go:build kube

package deploy_test

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/test/harness"
)

const (
	account = "system:serviceaccount:heddle-system:heddle"
	merge   = "application/merge-patch+json"
	// strategic is how agents write: conditions are merged by their type.
	strategic = "application/strategic-merge-patch+json"
)

// TestManifestsOnAnAPIServer runs its parts on one API server, in this order.
func TestManifestsOnAnAPIServer(t *testing.T) {
	s := startServer(t)
	t.Run("APIServerTakesEveryManifest", func(t *testing.T) { takesEveryManifest(t, s) })
	token := s.install(t)
	t.Run("AgentChangesNothingButItsOwnNodesMarks", func(t *testing.T) { changesItsMarksOnly(t, s, token) })
	t.Run("AgentWritesNoBlocksButItsOwn", func(t *testing.T) { writesItsBlocksOnly(t, s, token) })
	t.Run("ServiceAccountMayReadWhatAgentsNeedAndWriteNothingElse", func(t *testing.T) { mayReadOnly(t, s, token) })
	t.Run("PolicyNeedsNoHelpFromRBAC", func(t *testing.T) { needsNoRBAC(t, s, token) })
}

// takesEveryManifest: strictly, so that a field that nobody knows is an error, and twice, as people do.
func takesEveryManifest(t *testing.T, s *server) {
	for _, file := range []string{manifest, "uninstall.yaml"} {
		for range 2 {
			for _, u := range objects(t, file) {
				s.apply(t, u)
			}
		}
	}
}

// install makes two nodes for the manifest that is applied, and the token of the agent on node a.
func (s *server) install(t *testing.T) (token string) {
	t.Helper()
	for _, name := range []string{"a", "b"} {
		s.must(t, request{method: http.MethodPost, path: "/api/v1/nodes", body: map[string]any{
			"apiVersion": "v1", "kind": "Node",
			"metadata": map[string]any{
				"name": name, "labels": map[string]any{"zone": "z1"},
				"annotations": map[string]any{"foreign": "1", "heddle.net/node": "{}"},
			},
			"spec": map[string]any{"podCIDR": "10.244.1.0/24", "podCIDRs": []any{"10.244.1.0/24"}, "taints": []any{map[string]any{"key": "k", "effect": "NoSchedule"}}},
		}})
		s.must(t, request{method: http.MethodPatch, path: "/api/v1/nodes/" + name + "/status", contentType: strategic, body: map[string]any{
			"status": map[string]any{
				"capacity":   map[string]any{"cpu": "2"},
				"addresses":  []any{map[string]any{"type": "InternalIP", "address": "192.168.0.1"}},
				"conditions": []any{map[string]any{"type": "Ready", "status": "True"}, map[string]any{"type": "NetworkUnavailable", "status": "True"}},
			},
		}})
	}
	token = s.podToken(t, "heddle-a", "a")
	// The policy takes hold a moment after it was written; a patch of the other node tells.
	harness.Wait(t, patience, "the admission policy holds", func() bool {
		code, _ := s.call(t, request{method: http.MethodPatch, path: "/api/v1/nodes/b/status", token: token, contentType: merge, body: annotate("heddle.net/probe", "1")})
		return code == http.StatusForbidden
	})
	return token
}

// podToken is a token as the kubelet of a node gets it for a pod of Heddle's service account there.
func (s *server) podToken(t *testing.T, pod, node string) string {
	t.Helper()
	path := "/api/v1/namespaces/heddle-system/"
	answer := s.must(t, request{method: http.MethodPost, path: path + "pods", body: map[string]any{
		"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": pod},
		"spec": map[string]any{"nodeName": node, "serviceAccountName": "heddle", "containers": []any{map[string]any{"name": "c", "image": "i"}}},
	}})
	var made struct{ Metadata struct{ UID string } }
	if err := json.Unmarshal([]byte(answer), &made); err != nil {
		t.Fatal(err)
	}
	answer = s.must(t, request{method: http.MethodPost, path: path + "serviceaccounts/heddle/token", body: map[string]any{
		"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
		"spec": map[string]any{"boundObjectRef": map[string]any{"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": made.Metadata.UID}},
	}})
	var got struct{ Status struct{ Token string } }
	if err := json.Unmarshal([]byte(answer), &got); err != nil || got.Status.Token == "" {
		t.Fatalf("no token in %s: %v", answer, err)
	}
	return got.Status.Token
}

func annotate(key string, value any) map[string]any {
	return map[string]any{"metadata": map[string]any{"annotations": map[string]any{key: value}}}
}

func condition(kind, status string) map[string]any {
	return map[string]any{"status": map[string]any{"conditions": []any{map[string]any{"type": kind, "status": status, "reason": "Test"}}}}
}

func status(field string, value any) map[string]any {
	return map[string]any{"status": map[string]any{field: value}}
}

func changesItsMarksOnly(t *testing.T, s *server, token string) {
	for _, c := range []struct {
		name, node, kind string
		body             any
		refusal          string // "": allowed
	}{
		{"own annotation", "a", merge, annotate("heddle.net/node", `{"name":"a"}`), ""},
		{"new annotation of ours", "a", merge, annotate("heddle.net/other", "x"), ""},
		{"Flannel's annotation", "a", strategic, annotate("flannel.alpha.coreos.com/public-ip", "192.168.0.1"), ""},
		{"its removal", "a", strategic, annotate("flannel.alpha.coreos.com/public-ip", nil), ""},
		{"network available", "a", strategic, condition("NetworkUnavailable", "False"), ""},
		{"both at once", "a", strategic, map[string]any{"metadata": annotate("heddle.net/node", "{}")["metadata"], "status": condition("NetworkUnavailable", "True")["status"]}, ""},
		{"nothing", "a", merge, map[string]any{}, ""},

		{"another node's annotation", "b", merge, annotate("heddle.net/node", "{}"), "its token is for a pod on a"},
		{"another node's condition", "b", strategic, condition("NetworkUnavailable", "False"), "its own node only"},
		{"a foreign annotation", "a", merge, annotate("foreign", "2"), "annotations"},
		{"a new foreign annotation", "a", merge, annotate("node.alpha.kubernetes.io/ttl", "0"), "annotations"},
		{"a foreign annotation's removal", "a", merge, annotate("foreign", nil), "annotations"},
		{"an annotation that only begins alike", "a", merge, annotate("heddle.network/node", "x"), "annotations"},
		{"a label", "a", merge, map[string]any{"metadata": map[string]any{"labels": map[string]any{"zone": "z2"}}}, "metadata"},
		{"a new label", "a", merge, map[string]any{"metadata": map[string]any{"labels": map[string]any{"node-role.kubernetes.io/control-plane": ""}}}, "metadata"},
		{"no labels", "a", merge, map[string]any{"metadata": map[string]any{"labels": nil}}, "metadata"},
		{"a finalizer", "a", merge, map[string]any{"metadata": map[string]any{"finalizers": []any{"x.io/y"}}}, "metadata"},
		{"an owner", "a", merge, map[string]any{"metadata": map[string]any{"ownerReferences": []any{map[string]any{"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": "u"}}}}, "metadata"},
		{"capacity", "a", merge, status("capacity", map[string]any{"cpu": "64"}), "status"},
		{"addresses", "a", merge, status("addresses", []any{map[string]any{"type": "InternalIP", "address": "192.168.0.66"}}), "status"},
		{"node info", "a", merge, status("nodeInfo", map[string]any{"kubeletVersion": "v9"}), "status"},
		{"a new field", "a", merge, status("phase", "Running"), "status"},
		{"no capacity", "a", merge, status("capacity", nil), "status"},
		{"the condition Ready", "a", strategic, condition("Ready", "False"), "status"},
		{"a new condition", "a", strategic, condition("DiskPressure", "True"), "status"},
		{"no conditions", "a", merge, status("conditions", []any{}), "status"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			code, answer := s.call(t, request{method: http.MethodPatch, path: "/api/v1/nodes/" + c.node + "/status", token: token, contentType: c.kind, body: c.body})
			if c.refusal == "" {
				if code != http.StatusOK {
					t.Fatalf("refused: %d: %s", code, answer)
				}
				return
			}
			if code != http.StatusForbidden || !strings.Contains(answer, c.refusal) || !strings.Contains(answer, "agent of Heddle") {
				t.Fatalf("%d: %s: want a refusal by the policy that says %q", code, answer, c.refusal)
			}
		})
	}
}

// needsNoRBAC: the same holds for whoever gave the service account more.
func needsNoRBAC(t *testing.T, s *server, token string) {
	s.must(t, request{method: http.MethodPost, path: "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", body: map[string]any{
		"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": map[string]any{"name": "too-much"},
		"roleRef":  map[string]any{"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
		"subjects": []any{map[string]any{"kind": "ServiceAccount", "name": "heddle", "namespace": "heddle-system"}},
	}})
	harness.Wait(t, patience, "the binding holds", func() bool {
		code, _ := s.call(t, request{path: "/api/v1/secrets", token: token})
		return code == http.StatusOK
	})
	refused := func(what string, r request) {
		t.Helper()
		r.token = token
		if code, answer := s.call(t, r); code != http.StatusForbidden || !strings.Contains(answer, "agent of Heddle") {
			t.Errorf("%s: %d: %s", what, code, answer)
		}
	}
	spec := map[string]any{"spec": map[string]any{"taints": nil}}
	refused("taints", request{method: http.MethodPatch, path: "/api/v1/nodes/a", contentType: merge, body: spec})
	refused("another node", request{method: http.MethodPatch, path: "/api/v1/nodes/b", contentType: merge, body: annotate("heddle.net/node", "x")})
	refused("a new node", request{method: http.MethodPost, path: "/api/v1/nodes", body: map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": "a2"}}})
	// A request without a token of a pod, as by a token made by hand.
	refused("a token of no node", request{method: http.MethodPatch, path: "/api/v1/nodes/a/status", contentType: merge, body: annotate("heddle.net/node", "x"), as: account})
	// Whoever else writes is not meant.
	s.must(t, request{method: http.MethodPatch, path: "/api/v1/nodes/b", contentType: merge, body: spec})
}

// mayReadOnly: what RBAC alone leaves an agent.
func mayReadOnly(t *testing.T, s *server, token string) {
	for _, c := range []struct {
		method, path string
		allowed      bool
	}{
		{http.MethodGet, "/api/v1/nodes", true},
		{http.MethodGet, "/api/v1/nodes/b", true},
		{http.MethodGet, "/api/v1/pods", true},
		{http.MethodGet, "/api/v1/namespaces", true},
		{http.MethodGet, "/api/v1/serviceaccounts", true},
		{http.MethodGet, "/apis/discovery.k8s.io/v1/endpointslices", true},
		{http.MethodGet, "/apis/networking.k8s.io/v1/networkpolicies", true},
		{http.MethodGet, "/apis/heddle.net/v1/blocks", true},

		{http.MethodGet, "/api/v1/secrets", false},
		{http.MethodGet, "/api/v1/namespaces/heddle-system/secrets/x", false},
		{http.MethodGet, "/api/v1/configmaps", false},
		{http.MethodGet, "/api/v1/services", false},
		{http.MethodGet, "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies/x", false},
		{http.MethodPost, "/api/v1/namespaces/heddle-system/serviceaccounts/heddle/token", false},
		{http.MethodPatch, "/api/v1/nodes/a", false},
		{http.MethodPut, "/api/v1/nodes/a/status", false},
		{http.MethodDelete, "/api/v1/nodes/a", false},
		{http.MethodPost, "/api/v1/nodes", false},
		{http.MethodPatch, "/api/v1/namespaces/default", false},
		{http.MethodPatch, "/api/v1/namespaces/heddle-system/pods/heddle-a", false},
		{http.MethodPost, "/api/v1/namespaces/heddle-system/pods/heddle-a/exec?command=x", false},
		{http.MethodPost, "/api/v1/namespaces/default/pods", false},
		{http.MethodPost, "/apis/networking.k8s.io/v1/namespaces/default/networkpolicies", false},
		{http.MethodPatch, "/apis/heddle.net/v1/blocks/10.245.0.0-30", false},
		{http.MethodDelete, "/apis/heddle.net/v1/blocks", false}, // all of them at once
		{http.MethodDelete, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/blocks.heddle.net", false},
		{http.MethodPatch, "/apis/apps/v1/namespaces/heddle-system/daemonsets/heddle", false},
		{http.MethodPatch, "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies/heddle-own-node", false},
	} {
		r := request{method: c.method, path: c.path, token: token, contentType: merge}
		if c.method != http.MethodGet {
			r.body = map[string]any{}
		}
		code, answer := s.call(t, r)
		if got := code != http.StatusForbidden; got != c.allowed || c.allowed && code != http.StatusOK {
			t.Errorf("%s %s: %d: %.200s", c.method, c.path, code, answer)
		}
	}
}
