package embedded_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/cert"
	"github.com/heddle-net/heddle/internal/model"
	"github.com/heddle-net/heddle/internal/store"
	"github.com/heddle-net/heddle/internal/store/embedded"
	"github.com/heddle-net/heddle/internal/store/etcd"
	"github.com/heddle-net/heddle/internal/store/storetest"
	"github.com/heddle-net/heddle/internal/store/storetest/etcdproc"
)

// issue makes a leaf for 127.0.0.1 in dir.
func issue(t *testing.T, dir, name string, kind cert.Kind) cert.Files {
	t.Helper()
	if err := cert.Issue(dir, cert.Request{Name: name, Kind: kind, Hosts: []string{"127.0.0.1"}}, cert.Options{}); err != nil {
		t.Fatal(err)
	}
	return cert.Files{CA: filepath.Join(dir, "ca.crt"), Cert: filepath.Join(dir, name+".crt"), Key: filepath.Join(dir, name+".key")}
}

func authority(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := cert.MakeCA(dir, cert.Options{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func TestThreeMembersWithMutualTLSSurviveTheLossOfOne(t *testing.T) {
	t.Parallel()
	dir := authority(t)
	members := map[string]string{}
	for _, n := range []string{"a", "b", "c"} {
		members[n] = fmt.Sprintf("https://127.0.0.1:%d", etcdproc.FreePort(t))
	}
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	procs := map[string]*etcdproc.Process{}
	var endpoints []string
	for n, peer := range members {
		o := embedded.Options{
			Name: n, DataDir: t.TempDir() + "/store",
			Listen:     []string{fmt.Sprintf("https://127.0.0.1:%d", etcdproc.FreePort(t))},
			PeerListen: peer, Cluster: members,
			TLS: issue(t, dir, n, cert.Peer), Heartbeat: 50 * time.Millisecond,
		}
		procs[n] = process(t, o)
		procs[n].Start(t)
		endpoints = append(endpoints, o.Listen[0])
	}
	s := open(t, etcd.Options{Endpoints: endpoints, TLS: issue(t, dir, "agent", cert.Client), CallTimeout: 20 * time.Second})
	rev, err := s.Put(ctx, storetest.Node(0), 0)
	if err != nil {
		t.Fatal(err)
	}
	ch, err := s.Watch(ctx, rev, model.KindNode)
	if err != nil {
		t.Fatal(err)
	}
	next := 0
	write := func() {
		t.Helper()
		next++
		n := storetest.Node(next)
		for {
			_, err := s.Put(ctx, n, store.AnyRevision)
			if err == nil {
				break
			}
			if !errors.Is(err, store.ErrUnavailable) || ctx.Err() != nil {
				t.Fatal(err)
			}
		}
		for e := storetest.Next(t, ch); e.Key != n.Name; {
			e = storetest.Next(t, ch)
		}
	}
	for n := range members {
		procs[n].Kill()
		write()
		write()
		procs[n].Start(t)
		write()
	}
	items, _, err := s.List(ctx, model.KindNode)
	if err != nil || len(items) != next+1 {
		t.Fatalf("%d nodes, %v; want %d", len(items), err, next+1)
	}
}

func TestClientWithoutTheRightCertificateIsRefused(t *testing.T) {
	t.Parallel()
	dir := authority(t)
	o := loopback(t)
	o.TLS = issue(t, dir, "store", cert.Server)
	plain := strings.TrimPrefix(o.Listen[0], "http://")
	o.Listen = []string{"https://" + plain}
	run(t, o)
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	get := func(url string, files cert.Files) error {
		s := open(t, etcd.Options{Endpoints: []string{url}, TLS: files, CallTimeout: time.Second})
		_, _, err := s.List(ctx, model.KindNode)
		return err
	}
	if err := get(o.Listen[0], issue(t, dir, "agent", cert.Client)); err != nil {
		t.Fatalf("the right certificate: %v", err)
	}
	if err := get(o.Listen[0], cert.Files{CA: filepath.Join(dir, "ca.crt")}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("no certificate: %v", err)
	}
	foreign := issue(t, authority(t), "agent", cert.Client)
	foreign.CA = filepath.Join(dir, "ca.crt")
	if err := get(o.Listen[0], foreign); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a certificate of another authority: %v", err)
	}
	if err := get(o.Listen[0], issue(t, dir, "srv", cert.Server)); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("a server's certificate in place of a client's: %v", err)
	}
	if err := get("http://"+plain, cert.Files{}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("plain text: %v", err)
	}
	wrong := issue(t, dir, "agent2", cert.Client)
	wrong.CA = issue(t, authority(t), "x", cert.Client).CA
	if err := get(o.Listen[0], wrong); !errors.Is(err, store.ErrUnavailable) || !strings.Contains(err.Error(), "unknown authority") {
		t.Errorf("a server of another authority: %v", err)
	}
	if err := get(o.Listen[0], issue(t, dir, "agent3", cert.Client)); err != nil {
		t.Fatalf("the right certificate, in the end: %v", err)
	}
}
