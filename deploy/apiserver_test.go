//go:build kube

package deploy_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/heddle-net/heddle/test/harness"
)

// server is a real API server with its etcd, on loopback.
type server struct {
	url    string
	client *http.Client
}

// admin is the token of a cluster administrator.
const admin = "admin"

// startServer runs the programs that HEDDLE_KUBE_BIN names until the end of the test.
func startServer(t *testing.T) *server {
	t.Helper()
	bin := os.Getenv("HEDDLE_KUBE_BIN")
	if bin == "" {
		t.Fatal("HEDDLE_KUBE_BIN: want the folder of etcd and kube-apiserver, as build/kube prints it")
	}
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	etcd, peer, port := freePort(t), freePort(t), freePort(t)
	write(t, file("tokens.csv"), []byte(admin+",admin,admin,system:masters\n"))
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, file("sa.key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))
	endpoint := "http://127.0.0.1:" + etcd
	harness.Start(t, filepath.Join(bin, "etcd"), "--data-dir", file("etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", endpoint, "--advertise-client-urls", endpoint, "--listen-peer-urls", "http://127.0.0.1:"+peer)
	harness.Start(t, filepath.Join(bin, "kube-apiserver"), "--etcd-servers", endpoint,
		"--bind-address", "127.0.0.1", "--secure-port", port, "--cert-dir", file("certs"), "--advertise-address", "127.0.0.1",
		"--endpoint-reconciler-type", "none", "--service-cluster-ip-range", "10.96.0.0/16",
		"--token-auth-file", file("tokens.csv"), "--authorization-mode", "Node,RBAC", "--enable-admission-plugins", "NodeRestriction",
		"--service-account-issuer", "https://kubernetes.default.svc", "--service-account-key-file", file("sa.key"),
		"--service-account-signing-key-file", file("sa.key"))

	s := &server{url: "https://127.0.0.1:" + port}
	harness.Wait(t, patience, "the API server is ready", func() bool {
		if s.client == nil {
			pemText, err := os.ReadFile(file("certs/apiserver.crt"))
			if err != nil {
				return false
			}
			roots := x509.NewCertPool()
			if !roots.AppendCertsFromPEM(pemText) {
				return false
			}
			s.client = &http.Client{
				Timeout:   time.Minute,
				Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
			}
		}
		code, answer := s.call(t, request{path: "/readyz"})
		if code == 0 {
			t.Log(answer)
			time.Sleep(time.Second / 2)
		}
		return code == http.StatusOK
	})
	return s
}

func write(t *testing.T, file string, text []byte) {
	t.Helper()
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// request is one call. The zero values of token and method are the administrator's, and GET.
type request struct {
	method, path, token, contentType string
	body                             any // bytes, or what becomes JSON
	as                               string
}

// call returns the status code, and the message of an API error or the whole answer.
func (s *server) call(t *testing.T, r request) (code int, answer string) {
	t.Helper()
	body, ok := r.body.([]byte)
	if !ok && r.body != nil {
		var err error
		if body, err = json.Marshal(r.body); err != nil {
			t.Fatal(err)
		}
	}
	if r.method == "" {
		r.method = http.MethodGet
	}
	if r.token == "" {
		r.token = admin
	}
	if r.contentType == "" {
		r.contentType = "application/json"
	}
	req, err := http.NewRequestWithContext(t.Context(), r.method, s.url+r.path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+r.token)
	req.Header.Set("Content-Type", r.contentType)
	if r.as != "" {
		req.Header.Set("Impersonate-User", r.as)
	}
	res, err := s.client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	var status struct{ Kind, Message string }
	if json.Unmarshal(text, &status) == nil && status.Kind == "Status" {
		return res.StatusCode, status.Message
	}
	return res.StatusCode, string(text)
}

// must is call for what cannot fail.
func (s *server) must(t *testing.T, r request) string {
	t.Helper()
	code, answer := s.call(t, r)
	if code < 200 || code > 299 {
		t.Fatalf("%s %s: %d: %s", r.method, r.path, code, answer)
	}
	return answer
}

// apply is what `kubectl apply --server-side --validate=strict` does.
func (s *server) apply(t *testing.T, u *unstructured.Unstructured) {
	t.Helper()
	s.must(t, request{
		method: http.MethodPatch, path: pathOf(t, u) + "?fieldManager=test&fieldValidation=Strict&force=true",
		contentType: "application/apply-patch+yaml", body: u.Object,
	})
}

// plurals are the kinds of our manifests.
var plurals = map[string]string{
	"CustomResourceDefinition": "customresourcedefinitions",
	"Namespace":                "namespaces", "ServiceAccount": "serviceaccounts", "ConfigMap": "configmaps", "DaemonSet": "daemonsets",
	"ClusterRole": "clusterroles", "ClusterRoleBinding": "clusterrolebindings",
	"ValidatingAdmissionPolicy": "validatingadmissionpolicies", "ValidatingAdmissionPolicyBinding": "validatingadmissionpolicybindings",
}

func pathOf(t *testing.T, u *unstructured.Unstructured) string {
	t.Helper()
	plural := plurals[u.GetKind()]
	if plural == "" {
		t.Fatalf("kind %s is not among those of this test", u.GetKind())
	}
	path := "/apis/" + u.GetAPIVersion()
	if u.GetAPIVersion() == "v1" {
		path = "/api/v1"
	}
	if ns := u.GetNamespace(); ns != "" {
		path += "/namespaces/" + ns
	}
	return fmt.Sprintf("%s/%s/%s", path, plural, u.GetName())
}
