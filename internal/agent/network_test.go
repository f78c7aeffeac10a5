package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/model"
)

// TestWrittenPoolOfAFiledRangeSaysHowItIsCarried, and leaves it its name and the size of blocks that nodes own.
func TestWrittenPoolOfAFiledRangeSaysHowItIsCarried(t *testing.T) {
	filed := []model.Pool{{Name: "flannel", CIDR: netip.MustParsePrefix("10.244.0.0/16"), BlockSize: 24, Path: model.PathVXLAN, Encap: model.EncapAlways}}
	written := []model.Pool{
		{Name: "default", CIDR: netip.MustParsePrefix("10.244.0.0/16"), BlockSize: 26, MaxBlocks: 20, Path: model.PathBGP, Encap: model.EncapNever, Masquerade: true},
		{Name: "another", CIDR: netip.MustParsePrefix("10.9.0.0/16"), BlockSize: 26, Path: model.PathIPIP, Encap: model.EncapAlways},
	}
	got := withWritten(filed, written)
	if len(got) != 2 || got[0].Name != "another" || got[0].BlockSize != 26 {
		t.Fatalf("got %+v", got)
	}
	if p := got[1]; p.Name != "flannel" || p.BlockSize != 24 || p.MaxBlocks != 0 || p.Path != model.PathBGP || p.Encap != model.EncapNever || !p.Masquerade {
		t.Errorf("the filed pool became %+v", p)
	}
	if filed[0].Path != model.PathVXLAN {
		t.Error("the store's own list was changed")
	}
}

func TestPasswordsComeFromTheirFolderOnly(t *testing.T) {
	dir := t.TempDir()
	folder := filepath.Join(dir, "passwords")
	for name, text := range map[string]string{
		"outside": "no", "passwords/tor/password": "s3cret\n", "passwords/tor/empty": "\n", "passwords/tor/long": strings.Repeat("x", 81),
		"passwords/tor/longest": strings.Repeat("x", 80) + "\r\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../../outside", filepath.Join(folder, "tor", "link")); err != nil {
		t.Fatal(err)
	}
	a := &Agent{Options: Options{Config: config.Config{BGP: config.BGP{Passwords: folder}}}}
	for ref, want := range map[string]string{"tor/password": "s3cret", "tor/empty": "", "tor/longest": strings.Repeat("x", 80)} {
		if got, err := a.password(ref); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", ref, string(got), err, want)
		}
	}
	for _, ref := range []string{"../outside", "tor/../../outside", "/etc/passwd", "tor/link", "tor/nothing", "tor/long", "tor"} {
		if got, err := a.password(ref); err == nil || got != "" {
			t.Errorf("%s: %q, %v; want an error", ref, string(got), err)
		}
	}
	if _, err := (&Agent{}).password("tor/password"); err == nil || !strings.Contains(err.Error(), "bgp.passwords") {
		t.Errorf("without a folder: %v", err)
	}
}

// TestSpoiltSettingCountsAsBefore, and what it says now is a problem.
func TestSpoiltSettingCountsAsBefore(t *testing.T) {
	pool := func(spec string) []model.Setting {
		return []model.Setting{{Resource: model.Resource{
			APIVersion: "projectcalico.org/v3", Type: "IPPool", Name: "default",
			Body: []byte(`{"apiVersion":"projectcalico.org/v3","kind":"IPPool","metadata":{"name":"default"},"spec":` + spec + `}`),
		}}}
	}
	var w written
	if net, problems := w.read(pool(`{"cidr":"10.244.0.0/16","ipipMode":"Always"}`)); len(net.Pools) != 1 || len(problems) != 0 {
		t.Fatalf("%+v, %v", net, problems)
	}
	net, problems := w.read(pool(`{"cidr":"10.244.0.0/16","ipipMode":"Sometimes"}`))
	if len(net.Pools) != 1 || net.Pools[0].Path != model.PathIPIP {
		t.Errorf("pools %+v, want the one of before", net.Pools)
	}
	if len(problems) != 1 || !strings.Contains(problems[0].Detail, "Sometimes") {
		t.Errorf("problems %v, want one about Sometimes", problems)
	}
	if net, _ := w.read(nil); len(net.Pools) != 0 {
		t.Errorf("a deleted one counts: %+v", net.Pools)
	}
}
