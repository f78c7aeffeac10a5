// Package internal_test checks the house itself: the floors of ARCHITECTURE.md, and what the documents
// promise.
package internal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/heddle-net/heddle"
	// maxLines is where a file must become two: about 400, with room for the last few lines.
	maxLines = 420
	// pureFloor is the highest floor without I/O, clock, goroutines and logs.
	pureFloor = 1
	plugin    = "cmd/heddle-cni"
	wire      = "internal/cni/wire"
)

// sideways are the imports within a floor that ARCHITECTURE.md names: drivers import their seam, and
// what people run is put together from its parts.
var sideways = map[string][]string{
	"cmd/heddle":                        {"internal/cli"},
	plugin:                              {wire},
	"internal/cli":                      {"internal/lab"},
	"internal/kernel/netlink":           {"internal/kernel"},
	"internal/kernel/nft":               {"internal/kernel"},
	"internal/store/etcd":               {"internal/store", "internal/store/zaplog", "internal/cert"},
	"internal/store/embedded":           {"internal/store", "internal/store/etcd", "internal/store/zaplog", "internal/cert"},
	"internal/store/flannelkv":          {"internal/store", "internal/store/etcd", "internal/store/zaplog", "internal/cert"},
	"internal/store/kube":               {"internal/store"},
	"internal/bgp":                      {"internal/bfd"},
	"internal/store/memory":             {"internal/store"},
	"internal/store/ledger":             {"internal/store"},
	"internal/store/storetest":          {"internal/store"},
	"internal/store/storetest/etcdproc": {"internal/store"},
	"internal/cni":                      {wire},
	"internal/plan":                     {"internal/path", "internal/peering"},
	"internal/peering":                  {"internal/selector"},
	"internal/kernel/filter":            {"internal/kernel"},
	"internal/kernel/flow":              {"internal/kernel"},
	"internal/policy":                   {"internal/selector"},
	"internal/dialect":                  {"internal/dialect/kube", "internal/dialect/calico", "internal/policy"},
	"internal/dialect/kube":             {"internal/policy", "internal/selector"},
	"internal/dialect/calico":           {"internal/policy", "internal/selector", "internal/dialect/kube", "internal/peering"},
	"internal/why":                      {"internal/policy"},
	"internal/agent":                    {"internal/enforce"},
}

// pkg is a package as `go list` tells it; folders are relative to the module's root.
type pkg struct {
	folder  string
	imports []string // folders of ours, by the package itself; tests may import what they like
	files   []string // Go files, absolute, without tests
}

// checkFloors returns a sentence for every import that goes up or sideways, and for every package that
// the table does not name. Folders cmd and internal are checked; build and test may import anything.
func checkFloors(pkgs []pkg, floors map[string]int, sideways map[string][]string) []string {
	var wrong []string
	for _, p := range pkgs {
		if !strings.HasPrefix(p.folder, "cmd/") && !strings.HasPrefix(p.folder, "internal/") {
			continue
		}
		floor, ok := floors[p.folder]
		if !ok {
			wrong = append(wrong, fmt.Sprintf("%s has no floor: name it in the floors table of ARCHITECTURE.md", p.folder))
			continue
		}
		for _, i := range p.imports {
			below, ok := floors[i]
			switch {
			case p.folder == plugin && i != wire:
				wrong = append(wrong, fmt.Sprintf("%s imports %s: the plugin shares only %s with the agent", plugin, i, wire))
			case !ok:
				wrong = append(wrong, fmt.Sprintf("%s imports %s, which has no floor", p.folder, i))
			case below > floor:
				wrong = append(wrong, fmt.Sprintf("%s (floor %d) imports %s (floor %d): only floors below may be imported", p.folder, floor, i, below))
			case below == floor && !slices.Contains(sideways[p.folder], i):
				wrong = append(wrong, fmt.Sprintf("%s imports %s of its own floor %d: move what both need a floor down, or name the pair in ARCHITECTURE.md and in this test", p.folder, i, floor))
			}
		}
	}
	return wrong
}

var (
	rowRE    = regexp.MustCompile(`^\| (\d) \| ([^|]+) \|`)
	folderRE = regexp.MustCompile("`((?:cmd|internal|api)[^`]*)`")
	braceRE  = regexp.MustCompile(`^(.*)\{(.*)\}(.*)$`)
)

// readFloors reads the floors table: folder to floor. A folder may be spelled a/{b,c}.
func readFloors(document string) map[string]int {
	floors := map[string]int{}
	for line := range strings.Lines(document) {
		row := rowRE.FindStringSubmatch(line)
		if row == nil {
			continue
		}
		floor, _ := strconv.Atoi(row[1]) // one digit, says rowRE
		for _, f := range folderRE.FindAllStringSubmatch(row[2], -1) {
			if b := braceRE.FindStringSubmatch(f[1]); b != nil {
				for middle := range strings.SplitSeq(b[2], ",") {
					floors[b[1]+strings.TrimSpace(middle)+b[3]] = floor
				}
				continue
			}
			floors[f[1]] = floor
		}
	}
	return floors
}

// impure returns what in a file needs the outside world.
func impure(name string, source any) ([]string, error) {
	fset := token.NewFileSet()
	file, err := parser.ParseFile(fset, name, source, 0)
	if err != nil {
		return nil, err
	}
	var wrong []string
	timeName, netName := "", ""
	for _, i := range file.Imports {
		path, _ := strconv.Unquote(i.Path.Value) // the parser took it
		switch {
		case path == "net":
			netName = "net"
			if i.Name != nil {
				netName = i.Name.Name
			}
		case path == "syscall", path == "crypto/rand",
			path == "os" || strings.HasPrefix(path, "os/"),
			path == "log" || strings.HasPrefix(path, "log/"),
			strings.HasPrefix(path, "net/http"), strings.HasPrefix(path, "golang.org/x/sys/"):
			wrong = append(wrong, fmt.Sprintf("%s imports %s", fset.Position(i.Pos()), path))
		case path == "time":
			timeName = "time"
			if i.Name != nil {
				timeName = i.Name.Name
			}
		}
	}
	pureNet := []string{"ParseMAC", "HardwareAddr"} // net/netip has no MACs
	clock := []string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTicker", "NewTimer"}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			wrong = append(wrong, fmt.Sprintf("%s starts a goroutine", fset.Position(n.Pos())))
		case *ast.SelectorExpr:
			x, ok := n.X.(*ast.Ident)
			switch {
			case !ok:
			case timeName != "" && x.Name == timeName && slices.Contains(clock, n.Sel.Name):
				wrong = append(wrong, fmt.Sprintf("%s reads the clock: time.%s", fset.Position(n.Pos()), n.Sel.Name))
			case netName != "" && x.Name == netName && !slices.Contains(pureNet, n.Sel.Name):
				wrong = append(wrong, fmt.Sprintf("%s uses net.%s: want net/netip", fset.Position(n.Pos()), n.Sel.Name))
			}
		}
		return true
	})
	return wrong, nil
}

// root is the module's folder.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// listPackages asks the go command for every package of the module.
func listPackages(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,GoFiles,Imports", "./...")
	cmd.Dir = root(t)
	cmd.Env = append(os.Environ(), "GOOS=linux")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []pkg
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var l struct {
			ImportPath, Dir  string
			GoFiles, Imports []string
		}
		if err := dec.Decode(&l); errors.Is(err, io.EOF) {
			return pkgs
		} else if err != nil {
			t.Fatal(err)
		}
		if len(l.GoFiles) == 0 {
			continue // tests only
		}
		p := pkg{folder: strings.TrimPrefix(l.ImportPath, module+"/")}
		for _, i := range l.Imports {
			if rest, ok := strings.CutPrefix(i, module+"/"); ok {
				p.imports = append(p.imports, rest)
			}
		}
		for _, f := range l.GoFiles {
			p.files = append(p.files, filepath.Join(l.Dir, f))
		}
		pkgs = append(pkgs, p)
	}
}

func floorsOfHouse(t *testing.T) map[string]int {
	t.Helper()
	doc, err := os.ReadFile(filepath.Join(root(t), "ARCHITECTURE.md"))
	if err != nil {
		t.Fatal(err)
	}
	return readFloors(string(doc))
}

func TestPackagesImportOnlyFloorsBelow(t *testing.T) {
	floors, pkgs := floorsOfHouse(t), listPackages(t)
	if floors["internal/model"] != 0 || floors["internal/agent"] != 3 || len(pkgs) < 5 {
		t.Fatalf("read %d floors from ARCHITECTURE.md and %d packages: want the whole house", len(floors), len(pkgs))
	}
	for _, w := range checkFloors(pkgs, floors, sideways) {
		t.Error(w)
	}
}

func TestPureFloorsHaveNoOutsideWorld(t *testing.T) {
	floors := floorsOfHouse(t)
	for _, p := range listPackages(t) {
		if floor, ok := floors[p.folder]; !ok || floor > pureFloor {
			continue
		}
		for _, f := range p.files {
			wrong, err := impure(f, nil)
			if err != nil {
				t.Error(err)
			}
			for _, w := range wrong {
				t.Errorf("%s: floors 0 and 1 are pure", w)
			}
		}
	}
}

func TestFilesStayShort(t *testing.T) {
	for _, p := range listPackages(t) {
		for _, f := range p.files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			if n := bytes.Count(text, []byte("\n")); n > maxLines {
				t.Errorf("%s has %d lines, want at most %d: split it by its nouns", f, n, maxLines)
			}
		}
	}
}

func TestFloorCheckFindsEachFault(t *testing.T) {
	floors := readFloors("| floor | folder |\n|---|---|\n" +
		"| 2 | `internal/cni`, `internal/cni/wire`, `cmd/heddle-cni` | hands |\n" +
		"| 1 | `internal/{plan,path}` | head |\n| 0 | `internal/model` | nouns |\n")
	allowed := map[string][]string{"internal/cni": {wire}, plugin: {wire}}
	for _, c := range []struct{ from, to, want string }{
		{"internal/cni", "internal/plan", ""},
		{"internal/cni", wire, ""},
		{plugin, wire, ""},
		{"test/bench", "internal/cni", ""},
		{"internal/model", "internal/plan", "only floors below"},
		{"internal/plan", "internal/cni", "only floors below"},
		{"internal/plan", "internal/path", "of its own floor 1"},
		{plugin, "internal/model", "the plugin shares only"},
		{"internal/plan", "internal/new", "which has no floor"},
		{"internal/new", "internal/model", "name it in the floors table"},
	} {
		got := strings.Join(checkFloors([]pkg{{folder: c.from, imports: []string{c.to}}}, floors, allowed), "\n")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s importing %s: got %q, want %q", c.from, c.to, got, c.want)
		}
	}
}

func TestPurityCheckFindsEachFault(t *testing.T) {
	for _, c := range []struct{ source, want string }{
		{"import \"net/netip\"\nvar A netip.Addr", ""},
		{"import \"time\"\nvar A = time.Second", ""},
		{"import \"net\"\nvar A, _ = net.ParseMAC(\"\")", ""},
		{"import \"net\"\nvar A net.IP", "uses net.IP"},
		{"import \"os\"\nvar A = os.Args", "imports os"},
		{"import \"log/slog\"\nvar A = slog.Default()", "imports log/slog"},
		{"import \"time\"\nvar A = time.Now()", "reads the clock: time.Now"},
		{"import clock \"time\"\nvar A = clock.Now", "reads the clock: time.Now"},
		{"func f() { go f() }", "starts a goroutine"},
	} {
		got, err := impure("sample.go", "package sample\n"+c.source)
		if err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(got, "\n"); (c.want == "") != (text == "") || !strings.Contains(text, c.want) {
			t.Errorf("%q: got %q, want %q", c.source, text, c.want)
		}
	}
}
