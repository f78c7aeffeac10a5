package ledger

import (
	"context"
	"errors"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/heddle-net/heddle/internal/ipam"
	"github.com/heddle-net/heddle/internal/model"
)

func TestFixedAddressIsGivenToOneAtATime(t *testing.T) {
	ctx := context.Background()
	path := filepath.Join(t.TempDir(), "ledger.db")
	l := open(t, path, Options{CoolDown: time.Hour, Taken: func(a netip.Addr) bool { return a == netip.MustParseAddr("10.0.0.9") }})
	block := netip.MustParsePrefix("10.0.0.0/28")
	want := netip.MustParseAddr("10.0.0.7")
	ask := Ask{Blocks: []netip.Prefix{block}, Fixed: []netip.Addr{want}, Reserved: []netip.Prefix{netip.MustParsePrefix("10.0.0.4/30")}}
	w, _, err := l.Take(ctx, workload("a"), ask, dawn)
	if err != nil || len(w.Addresses) != 1 || w.Addresses[0] != want {
		t.Fatalf("got %v, %v: want %s, though it is reserved", w.Addresses, err, want)
	}
	_, _, err = l.Take(ctx, workload("b"), ask, dawn)
	if !errors.Is(err, ipam.ErrAddressInUse) || !strings.Contains(err.Error(), "belongs to workload a") {
		t.Fatalf("error %v, want one that names the owner", err)
	}
	if _, _, err := l.Release(ctx, "a/eth0", dawn); err != nil {
		t.Fatal(err)
	}
	if w, _, err = l.Take(ctx, workload("b"), ask, dawn); err != nil || w.Addresses[0] != want {
		t.Fatalf("got %v, %v: who names an address gets it while it rests", w.Addresses, err)
	}
	for _, bad := range []string{"10.0.0.1", "10.0.0.15", "10.0.1.7"} {
		var field *model.FieldError
		if _, _, err := l.Take(ctx, workload("c"), Ask{Blocks: ask.Blocks, Fixed: []netip.Addr{netip.MustParseAddr(bad)}}, dawn); !errors.As(err, &field) {
			t.Errorf("%s: error %v, want a FieldError", bad, err)
		}
	}
	if _, _, err := l.Take(ctx, workload("c"), Ask{Blocks: ask.Blocks, Fixed: []netip.Addr{netip.MustParseAddr("10.0.0.9")}}, dawn); !errors.Is(err, ipam.ErrAddressInUse) {
		t.Errorf("error %v for an address that another plugin has given", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = open(t, path, Options{})
	if _, _, err = l.Take(ctx, workload("d"), ask, dawn); !errors.Is(err, ipam.ErrAddressInUse) {
		t.Fatalf("after a restart: error %v, want the address in use", err)
	}
}

func TestReservedAddressesStayOutOfUse(t *testing.T) {
	ctx := context.Background()
	l := open(t, filepath.Join(t.TempDir(), "ledger.db"), Options{CoolDown: time.Minute})
	block := netip.MustParsePrefix("10.0.0.0/28") // .2 to .14
	reserved := []netip.Prefix{netip.MustParsePrefix("10.0.0.2/31"), netip.MustParsePrefix("10.0.0.8/29")}
	use := func(now time.Time) ipam.Use {
		u, err := l.Usage(ctx, []netip.Prefix{block}, reserved, now)
		if err != nil || len(u) != 1 {
			t.Fatal(u, err)
		}
		return u[0]
	}
	if u := use(dawn); u.Size != 4 || u.Free != 4 {
		t.Fatalf("use %+v of .4 to .7", u)
	}
	for _, id := range []string{"a", "b", "c", "d"} {
		w, _, err := l.Take(ctx, workload(id), Ask{Blocks: []netip.Prefix{block}, Reserved: reserved}, dawn)
		if err != nil || w.Addresses[0].As4()[3] < 4 || w.Addresses[0].As4()[3] > 7 {
			t.Fatalf("%s got %v, %v", id, w.Addresses, err)
		}
	}
	if _, _, err := l.Take(ctx, workload("e"), Ask{Blocks: []netip.Prefix{block}, Reserved: reserved}, dawn); !errors.Is(err, ipam.ErrBlockFull) {
		t.Fatalf("error %v, want a full block", err)
	}
	if _, _, err := l.Release(ctx, "a/eth0", dawn); err != nil {
		t.Fatal(err)
	}
	if u := use(dawn.Add(time.Second)); u.Used != 3 || u.Cooling != 1 || u.Free != 0 {
		t.Errorf("use %+v, want three, one that rests and none free", u)
	}
	if err := l.SetCoolDown(ctx, 0); err != nil {
		t.Fatal(err)
	}
	if u := use(dawn.Add(time.Second)); u.Cooling != 0 || u.Free != 1 {
		t.Errorf("use %+v without a cool-down, want one free", u)
	}
	if w, _, err := l.Take(ctx, workload("e"), Ask{Blocks: []netip.Prefix{block}, Reserved: reserved}, dawn.Add(time.Second)); err != nil {
		t.Errorf("got %v, %v without a cool-down", w.Addresses, err)
	}
}
