package cert

import (
	"crypto/tls"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/model"
)

func files(dir, name string) Files {
	return Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
}

func made(t *testing.T, reqs ...Request) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "tls")
	if err := MakeCA(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	for _, r := range reqs {
		if err := Issue(dir, r, Options{}); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// shake runs one TLS handshake and a byte each way, over a connection in memory.
func shake(server, client *tls.Config) (serverErr, clientErr error) {
	a, b := net.Pipe()
	_ = a.SetDeadline(time.Now().Add(10 * time.Second))
	_ = b.SetDeadline(time.Now().Add(10 * time.Second))
	done := make(chan error, 1)
	go func() {
		c := tls.Server(a, server)
		err := c.Handshake()
		if err == nil {
			_, err = c.Write([]byte{1})
		}
		_ = a.Close()
		done <- err
	}()
	c := tls.Client(b, client)
	_, clientErr = c.Read(make([]byte, 1))
	_ = b.Close()
	return <-done, clientErr
}

func TestBothEndsMustShowACertificateOfTheAuthority(t *testing.T) {
	dir := made(t, Request{"store", Server, []string{"192.168.0.4", "store.example"}}, Request{"agent", Client, nil}, Request{"member", Peer, []string{"192.168.0.5"}})
	other := made(t, Request{"agent", Client, nil})
	server, err := files(dir, "store").ServerConfig()
	if err != nil {
		t.Fatal(err)
	}
	client := func(f Files, name string) *tls.Config {
		c, err := f.ClientConfig()
		if err != nil {
			t.Fatal(err)
		}
		c.ServerName = name
		return c
	}
	foreign := files(other, "agent")
	foreign.CA = files(dir, "").CA
	for _, c := range []struct {
		name string
		cfg  *tls.Config
		ok   bool
	}{
		{"agent by address", client(files(dir, "agent"), "192.168.0.4"), true},
		{"agent by name", client(files(dir, "agent"), "store.example"), true},
		{"member as client", client(files(dir, "member"), "192.168.0.4"), true},
		{"wrong address", client(files(dir, "agent"), "192.168.0.9"), false},
		{"server's certificate", client(files(dir, "store"), "192.168.0.4"), false},
		{"no certificate", client(Files{CA: files(dir, "").CA}, "192.168.0.4"), false},
		{"foreign certificate", client(foreign, "192.168.0.4"), false},
		{"foreign authority", client(files(other, "agent"), "192.168.0.4"), false},
	} {
		se, ce := shake(server, c.cfg)
		if (se == nil && ce == nil) != c.ok {
			t.Errorf("%s: server %v, client %v, want success %v", c.name, se, ce, c.ok)
		}
	}
	old := client(files(dir, "agent"), "192.168.0.4")
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if se, _ := shake(server, old); se == nil {
		t.Error("TLS 1.2 was taken")
	}
}

func TestRenewedCertificateNeedsNoRestart(t *testing.T) {
	dir := made(t, Request{"store", Server, []string{"10.0.0.1"}}, Request{"agent", Client, nil})
	server, err := files(dir, "store").ServerConfig()
	if err != nil {
		t.Fatal(err)
	}
	client, err := files(dir, "agent").ClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	client.ServerName = "10.0.0.2"
	if _, err := shake(server, client); err == nil {
		t.Fatal("the first certificate was good for 10.0.0.2 too")
	}
	if err := Issue(dir, Request{"store", Server, []string{"10.0.0.2"}}, Options{Overwrite: true}); err != nil {
		t.Fatal(err)
	}
	if se, ce := shake(server, client); se != nil || ce != nil {
		t.Fatalf("after the renewal: %v, %v", se, ce)
	}
}

func TestKeysAreTheirOwnersAloneAndNothingIsOverwritten(t *testing.T) {
	r := Request{"agent", Client, nil}
	dir := made(t, r)
	before, err := os.ReadFile(filepath.Join(dir, "agent.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []string{"ca.key", "agent.key"} {
		fi, err := os.Stat(filepath.Join(dir, k))
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v %v, want mode 0600", k, fi.Mode(), err)
		}
	}
	if err := Issue(dir, r, Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second certificate: %v, want ErrExist", err)
	}
	if err := MakeCA(dir, Options{}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second authority: %v, want ErrExist", err)
	}
	after, err := os.ReadFile(filepath.Join(dir, "agent.key"))
	if err != nil || string(after) != string(before) {
		t.Errorf("the key changed: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left over: %v %v", left, err)
	}
}

func TestExpiryIsWhatWasAskedFor(t *testing.T) {
	dir := made(t, Request{"agent", Client, nil})
	near := func(file string, want time.Duration) {
		t.Helper()
		end, err := Expiry(filepath.Join(dir, file))
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Until(end) - want; d > time.Minute || d < -time.Minute {
			t.Errorf("%s ends at %s, want in %s", file, end, want)
		}
	}
	near("ca.crt", CAValidity)
	near("agent.crt", LeafValidity)
	if err := Issue(dir, Request{"short", Client, nil}, Options{Validity: 2 * time.Hour}); err != nil {
		t.Fatal(err)
	}
	near("short.crt", 2*time.Hour)
	var fe *model.FieldError
	if err := Issue(dir, Request{"long", Client, nil}, Options{Validity: 2 * CAValidity}); !errors.As(err, &fe) || fe.Field != "validity" {
		t.Errorf("a leaf that outlives its authority: %v", err)
	}
	if err := MakeCA(dir, Options{Validity: time.Hour, Overwrite: true}); err != nil {
		t.Fatal(err)
	}
	if err := Issue(dir, Request{"capped", Client, nil}, Options{}); err != nil {
		t.Fatal(err)
	}
	near("capped.crt", time.Hour)
}

func TestBadRequestIsRefusedByName(t *testing.T) {
	dir := made(t)
	for _, c := range []struct {
		r    Request
		want string
	}{
		{Request{"../x", Client, nil}, "name"},
		{Request{"ca", Client, nil}, "name"},
		{Request{"", Client, nil}, "name"},
		{Request{"a", "root", nil}, "kind"},
		{Request{"a", Server, nil}, "hosts"},
		{Request{"a", Peer, []string{"not a host"}}, "hosts"},
	} {
		err := Issue(dir, c.r, Options{})
		var fe *model.FieldError
		if !errors.As(err, &fe) || fe.Field != c.want {
			t.Errorf("%+v: %v, want an error about %s", c.r, err, c.want)
		}
	}
	if err := Issue(t.TempDir(), Request{"a", Client, nil}, Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no authority: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.key"), []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Issue(dir, Request{"a", Client, nil}, Options{}); err == nil {
		t.Error("a broken key of the authority was taken")
	}
	for _, f := range []Files{{}, {CA: "x"}, files(dir, "nobody")} {
		if f.Check() == nil {
			t.Errorf("%+v was taken", f)
		}
	}
}
