package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
)

func TestWhatHostLocalKeepsOfAContainerIsGivenBackAndNothingElse(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("cbr0/10.244.0.5", "web\r\neth0")
	write("cbr0/fd00:244::5", "web\r\neth0")
	write("cbr0/10.244.0.6", "web\r\nnet1")
	write("cbr0/10.244.0.7", "webb\r\neth0")
	write("cbr0/10.244.0.8", "db") // as older versions wrote it
	write("cbr0/last_reserved_ip.0", "web\r\neth0")
	write("other/10.9.0.5", "web\neth0")

	freed, err := hostLocalFree(dir, "web", "eth0")
	if err != nil || len(freed) != 3 {
		t.Fatalf("freed %v, %v", freed, err)
	}
	for name, want := range map[string]bool{
		"cbr0/10.244.0.5": false, "cbr0/fd00:244::5": false, "other/10.9.0.5": false,
		"cbr0/10.244.0.6": true, "cbr0/10.244.0.7": true, "cbr0/10.244.0.8": true, "cbr0/last_reserved_ip.0": true,
	} {
		if _, err := os.Stat(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s is there: %v, want %v", name, err == nil, want)
		}
	}
	if hostLocalHas(dir, netip.MustParseAddr("10.244.0.5")) || !hostLocalHas(dir, netip.MustParseAddr("10.244.0.6")) {
		t.Error("hostLocalHas does not see what was given back")
	}
	if freed, err := hostLocalFree(dir, "db", "eth0"); err != nil || len(freed) != 1 {
		t.Errorf("freed %v, %v: a file without an interface is the container's", freed, err)
	}
	if freed, err := hostLocalFree(filepath.Join(dir, "nowhere"), "web", "eth0"); err != nil || freed != nil {
		t.Errorf("freed %v, %v without any folder", freed, err)
	}
}
