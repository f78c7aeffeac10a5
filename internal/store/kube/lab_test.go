//go:build kube

package kube_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/heddle-net/heddle/internal/store/kube"
	"github.com/heddle-net/heddle/internal/store/storetest/etcdproc"
)

// These tests need a real kube-apiserver and its etcd: HEDDLE_KUBE_BIN names the folder.
func TestMain(m *testing.M) {
	if config := os.Getenv(childEnv); config != "" {
		if err := child(config); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what must come.
const patience = time.Minute

const (
	adminToken = "admin-of-the-test"
	agentToken = "agent-of-the-test"
)

// lab is an API server with an etcd of its own.
type lab struct {
	etcd, server *etcdproc.Process
	url          string
	kubeconfig   string // of the administrator
	agentConfig  string // of user agent, who has no rights of his own
	admin        dynamic.Interface
}

func bin(t testing.TB, name string) string {
	t.Helper()
	path := filepath.Join(os.Getenv("HEDDLE_KUBE_BIN"), name)
	if _, err := os.Stat(path); err != nil || !filepath.IsAbs(path) {
		t.Fatalf("HEDDLE_KUBE_BIN=%s: want a folder with %s", os.Getenv("HEDDLE_KUBE_BIN"), name)
	}
	return path
}

// newLab starts both, and ends them with the test.
func newLab(t testing.TB) *lab {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", etcdproc.FreePort(t)), fmt.Sprintf("http://127.0.0.1:%d", etcdproc.FreePort(t))
	l := &lab{}
	l.etcd = etcdproc.New(t, client, []string{
		bin(t, "etcd"), "--name", "lab", "--data-dir", filepath.Join(dir, "etcd"), "--unsafe-no-fsync",
		"--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "lab=" + peer,
		"--log-level", "error",
	}, nil)
	key := filepath.Join(dir, "sa.key")
	if out, err := exec.Command("openssl", "genrsa", "-out", key, "2048").CombinedOutput(); err != nil {
		t.Fatalf("openssl: %v: %s", err, out)
	}
	tokens := write("tokens", adminToken+",admin,1,system:masters\n"+agentToken+",agent,2,system:authenticated\n")
	port := etcdproc.FreePort(t)
	l.url = fmt.Sprintf("https://127.0.0.1:%d", port)
	l.server = etcdproc.New(t, l.url, []string{
		bin(t, "kube-apiserver"), "--etcd-servers", client, "--secure-port", fmt.Sprint(port), "--bind-address", "127.0.0.1",
		"--cert-dir", filepath.Join(dir, "certs"), "--token-auth-file", tokens, "--authorization-mode", "RBAC",
		"--service-account-issuer", "https://lab", "--service-account-key-file", key, "--service-account-signing-key-file", key,
		"--service-cluster-ip-range", "10.96.0.0/16", "--disable-admission-plugins", "ServiceAccount,TaintNodesByCondition",
		"--endpoint-reconciler-type", "none",
	}, nil)
	l.kubeconfig, l.agentConfig = write("admin.yaml", l.config(adminToken)), write("agent.yaml", l.config(agentToken))
	cfg := &rest.Config{
		Host: l.url, BearerToken: adminToken, QPS: -1, TLSClientConfig: rest.TLSClientConfig{Insecure: true},
	}
	var err error
	if l.admin, err = dynamic.NewForConfig(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(http.DefaultClient.CloseIdleConnections)
	l.etcd.Start(t)
	l.server.Start(t)
	l.waitReady(t)
	return l
}

func (l *lab) config(token string) string {
	return fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"lab",
"clusters":[{"name":"lab","cluster":{"server":%q,"insecure-skip-tls-verify":true}}],
"users":[{"name":"lab","user":{"token":%q}}],
"contexts":[{"name":"lab","context":{"cluster":"lab","user":"lab"}}]}`, l.url, token)
}

// waitReady waits until the server serves.
func (l *lab) waitReady(t testing.TB) {
	t.Helper()
	c := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true, //nolint:gosec // the lab's own
	}}
	var last string
	for end := time.Now().Add(2 * patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		req, err := http.NewRequest(http.MethodGet, l.url+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+adminToken)
		resp, err := c.Do(req)
		if err != nil {
			last = err.Error()
			continue
		}
		_ = resp.Body.Close()
		if last = resp.Status; resp.StatusCode == http.StatusOK {
			return
		}
	}
	t.Fatalf("the API server is not ready: %s", last)
}

// open returns a store that is closed with the test.
func (l *lab) open(t testing.TB, o kube.Options) *kube.Store {
	t.Helper()
	if o.Kubeconfig == "" {
		o.Kubeconfig = l.kubeconfig
	}
	s, err := kube.New(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// until tries until f is content.
func until(t testing.TB, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("did not come: %s", what)
		}
	}
}

// Resources of the API.
var (
	nodes           = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	pods            = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	namespaces      = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	serviceAccounts = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}
	networkPolicies = schema.GroupVersionResource{Group: "networking.k8s.io", Version: "v1", Resource: "networkpolicies"}
	endpointSlices  = schema.GroupVersionResource{Group: "discovery.k8s.io", Version: "v1", Resource: "endpointslices"}
	definitions     = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}
)

func untyped(o any) (*unstructured.Unstructured, error) {
	if m, is := o.(map[string]any); is {
		return &unstructured.Unstructured{Object: m}, nil
	}
	m, err := runtime.DefaultUnstructuredConverter.ToUnstructured(o)
	return &unstructured.Unstructured{Object: m}, err
}

// create makes an object, and then its status, if it has one.
func (l *lab) create(gvr schema.GroupVersionResource, o any) error {
	u, err := untyped(o)
	if err != nil {
		return err
	}
	c := l.admin.Resource(gvr).Namespace(u.GetNamespace())
	made, err := c.Create(context.Background(), u, metav1.CreateOptions{})
	if status, has := u.Object["status"].(map[string]any); has && len(status) > 0 && err == nil {
		made.Object["status"] = status
		_, err = c.UpdateStatus(context.Background(), made, metav1.UpdateOptions{})
	}
	return err
}

// patch is a merge patch by the administrator.
func (l *lab) patch(t testing.TB, gvr schema.GroupVersionResource, namespace, name, text string, sub ...string) {
	t.Helper()
	_, err := l.admin.Resource(gvr).Namespace(namespace).Patch(context.Background(), name, types.MergePatchType, []byte(text), metav1.PatchOptions{}, sub...)
	if err != nil {
		t.Fatal(err)
	}
}

func (l *lab) remove(t testing.TB, gvr schema.GroupVersionResource, namespace, name string) {
	t.Helper()
	now := int64(0)
	err := l.admin.Resource(gvr).Namespace(namespace).Delete(context.Background(), name, metav1.DeleteOptions{GracePeriodSeconds: &now})
	if err != nil {
		t.Fatal(err)
	}
}

func (l *lab) get(t testing.TB, gvr schema.GroupVersionResource, namespace, name string) *unstructured.Unstructured {
	t.Helper()
	u, err := l.admin.Resource(gvr).Namespace(namespace).Get(context.Background(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return u
}
