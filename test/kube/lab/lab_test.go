package lab

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func bare(t *testing.T) *Lab {
	t.Helper()
	s := Default()
	s.DualStack, s.Manifest = true, "../../../deploy/heddle.yaml"
	return &Lab{Spec: s, dir: t.TempDir()}
}

func certificate(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCertificatesAreOfTheAuthorityAndForWhoTheyAre(t *testing.T) {
	l := bare(t)
	if err := l.makeCertificates(); err != nil {
		t.Fatal(err)
	}
	roots, front := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(certificate(t, l.path("pki", "ca.crt")))
	front.AddCert(certificate(t, l.path("pki", "front-ca.crt")))
	for _, test := range []struct {
		file, user, group string
		roots             *x509.CertPool
		names             []string
	}{
		{"apiserver", "kube-apiserver", "", roots, []string{"10.250.0.1", "fd00:10:250::1", "10.96.0.1", "fd00:10:96::1", "kubernetes.default.svc"}},
		{"n1", "system:node:n1", "system:nodes", roots, []string{"10.250.0.11", "fd00:10:250::11", "n1"}},
		{"n2", "system:node:n2", "system:nodes", roots, []string{"10.250.0.12", "n2"}},
		{"admin", "admin", "system:masters", roots, nil},
		{"kube-proxy", "system:kube-proxy", "", roots, nil},
		{"front-proxy", "front-proxy-client", "", front, nil},
	} {
		c := certificate(t, l.path("pki", test.file+".crt"))
		if _, err := c.Verify(x509.VerifyOptions{Roots: test.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
			t.Errorf("%s: %v", test.file, err)
		}
		if c.Subject.CommonName != test.user || strings.Join(c.Subject.Organization, ",") != test.group {
			t.Errorf("%s is %s, want user %s of group %q", test.file, c.Subject, test.user, test.group)
		}
		for _, n := range test.names {
			if err := c.VerifyHostname(n); err != nil {
				t.Errorf("%s: %v", test.file, err)
			}
		}
	}
	if info, err := os.Stat(l.path("pki", "ca.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the authority's key has mode %v (%v)", info.Mode(), err)
	}
}

// What is installed is what stands in deploy/, but for the networks.
func TestManifestsAreThoseOfDeployWithTheLabsNetworks(t *testing.T) {
	l := bare(t)
	text, err := l.Manifests()
	if err != nil {
		t.Fatal(err)
	}
	original, err := os.ReadFile(l.Spec.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	got, want := strings.Split(text, "\n---\n"), strings.Split(string(original), "\n---\n")
	if len(got) != len(want) {
		t.Fatalf("%d documents, want %d", len(got), len(want))
	}
	var changed []map[string]any
	for i := range got {
		if got[i] != want[i] {
			var object map[string]any
			if err := yaml.Unmarshal([]byte(got[i]), &object); err != nil {
				t.Fatal(err)
			}
			changed = append(changed, object)
		}
	}
	if len(changed) != 1 || changed[0]["kind"] != "ConfigMap" {
		t.Fatalf("changed: %v, want the ConfigMap alone", changed)
	}
	data := changed[0]["data"].(map[string]any)
	if _, ok := data["heddle.yaml"]; !ok {
		t.Errorf("the ConfigMap lost heddle.yaml: %v", data)
	}
	var conf struct{ Network, IPv6Network string }
	if err := json.Unmarshal([]byte(data["net-conf.json"].(string)), &conf); err != nil {
		t.Fatal(err)
	}
	if conf.Network != podNet4.String() || conf.IPv6Network != podNet6.String() {
		t.Errorf("networks %+v", conf)
	}
}

func TestSpecIsCheckedBeforeAnythingIsMade(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	good := Default()
	good.Network, good.Bin = None, t.TempDir()
	for name, change := range map[string]func(*Spec){
		"name":    func(s *Spec) { s.Name = "../x" },
		"nodes":   func(s *Spec) { s.Nodes = 0 },
		"proxy":   func(s *Spec) { s.Proxy = "ipvs" },
		"network": func(s *Spec) { s.Network = "calico" },
		"bin":     func(*Spec) {},
	} {
		spec := good
		change(&spec)
		if _, err := Up(t.Context(), spec); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "*")); err != nil || len(left) > 0 {
		t.Errorf("left %q (%v)", left, err)
	}
}

// A number is given again to another process: that one is not ours to kill.
func TestOnlyTheProcessThatWasStartedIsKilled(t *testing.T) {
	l := &Lab{dir: t.TempDir()}
	if err := os.Mkdir(l.path("log"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := l.start("sleeper", "sleep", "600"); err != nil {
		t.Fatal(err)
	}
	p := l.Processes[0]
	other := p
	other.Start++
	if err := other.kill(); err != nil || !p.alive() {
		t.Errorf("a process that only has the number of ours was killed (%v)", err)
	}
	if err := p.kill(); err != nil || p.alive() {
		t.Errorf("it is not dead: %v", err)
	}
	if err := l.checkAlive(); err == nil || !strings.Contains(err.Error(), "sleeper") {
		t.Errorf("error %v, want one that names the dead", err)
	}
}

// A machine on which no kubelet would start says so at once. (A folder stands for the cgroup: this machine may have
// either version.)
func TestACgroupWithoutWhatAKubeletNeedsIsNamed(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("cgroup.controllers", "cpu io memory pids\n")
	write("cgroup.subtree_control", "cpu memory\n")
	if err := giveControllers(dir); err == nil || !strings.Contains(err.Error(), "cpuset is with version 1") {
		t.Errorf("error %v, want one that names cpuset", err)
	}
	write("cgroup.controllers", "cpuset cpu io memory pids\n")
	write("cgroup.subtree_control", "cpu memory cpuset\n")
	if err := giveControllers(dir); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, "cgroup.subtree_control")); err != nil || string(text) != "+pids" {
		t.Errorf("written: %q (%v), want what is missing alone", text, err)
	}
}
