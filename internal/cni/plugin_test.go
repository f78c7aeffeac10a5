package cni_test

import (
	"debug/elf"
	"os"
	"path/filepath"
	"testing"

	"github.com/heddle-net/heddle/internal/cni"
)

func TestPluginIsSmallAndStatic(t *testing.T) {
	path := filepath.Join(pluginDir, cni.PluginType)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() >= 8<<20 {
		t.Errorf("%d bytes: want less than 8 MiB", info.Size())
	}
	t.Logf("%d bytes", info.Size())
	f, err := elf.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			t.Error("the plugin is linked dynamically")
		}
	}
}

// BenchmarkPluginStart is fork, exec and exit of the plugin with nothing asked of the agent.
func BenchmarkPluginStart(b *testing.B) {
	for b.Loop() {
		if _, exit := plugin(b, []string{"CNI_COMMAND=VERSION"}, goodConf); exit != 0 {
			b.Fatal(exit)
		}
	}
}

// BenchmarkAddAndDelete is both verbs by the plugin and the ledger, without any kernel work.
func BenchmarkAddAndDelete(b *testing.B) {
	s := serve(b)
	ns := netns(b)
	for b.Loop() {
		for _, command := range []string{"ADD", "DEL"} {
			if out, exit := plugin(b, request(command, "c1", ns, "HEDDLE_CNI_SOCKET="+s.socket), goodConf); exit != 0 {
				b.Fatal(out)
			}
		}
	}
}
