// Package docs_test keeps the documents true: the commands they show exist, and what exists is in them.
package docs_test

import (
	"bytes"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/heddle-net/heddle/internal/cli"
	"github.com/heddle-net/heddle/internal/config"
	"github.com/heddle-net/heddle/internal/dialect/flannel"
)

var (
	spanRE   = regexp.MustCompile("`([^`\n]+)`")
	linkRE   = regexp.MustCompile(`\]\(([^)#:]+)\)`)
	usageRE  = regexp.MustCompile(`Usage:\n  heddle([^\n]*)`)
	flagRE   = regexp.MustCompile(`(?m)^\s+(?:-\w, )?(--[a-z-]+)`)
	targetRE = regexp.MustCompile(`(?m)^([a-z-]+):`)
	codeRE   = regexp.MustCompile(`(?:\b[Cc]ode(?:, p\.Next)?\s*:?=?\s*|\bcode[A-Z]\w*\s*=\s*|\bproblem\(|\.fail\()"([a-z]+(?:-[a-z]+)*)"`)
	planRE   = regexp.MustCompile(`\b(?:bad|lost|ofPool)\("([a-z]+(?:-[a-z]+)*)"`) // internal/plan's own helpers
)

// documents are the README and all of docs, by their path from the module's root.
func documents(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, pattern := range []string{"../*.md", "*.md", "*/*.md"} {
		files, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			text, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			all[f] = string(text)
		}
	}
	if len(all) < 5 {
		t.Fatalf("found %d documents, want README.md and all of docs", len(all))
	}
	return all
}

// commands are the command lines of a document that begin with the program: lines of sh blocks, and
// code spans.
func commands(document, program string) []string {
	var found []string
	add := func(line string) {
		line, _, _ = strings.Cut(line, " #")
		line = strings.TrimPrefix(strings.TrimSpace(line), "sudo ")
		line = strings.TrimPrefix(line, "bin/")
		if rest, ok := strings.CutPrefix(line, program+" "); ok {
			found = append(found, strings.TrimSpace(rest))
		}
	}
	inside, shell := false, false
	for line := range strings.Lines(document) {
		switch {
		case strings.HasPrefix(line, "```"):
			inside, shell = !inside, strings.HasPrefix(line, "```sh")
		case inside && shell:
			add(line)
			// A command may run another in the lab: `heddle lab exec … -- heddle status`.
			if _, inner, ok := strings.Cut(line, " -- "); ok {
				add(inner)
			}
		case !inside:
			for _, span := range spanRE.FindAllStringSubmatch(line, -1) {
				add(span[1])
			}
		}
	}
	return found
}

// help runs heddle with the arguments and --help: flags are parsed, nothing is run. It returns the help
// text, or what was wrong.
func help(arguments string) (text, fault string) {
	args := strings.Fields(arguments)
	at := slices.Index(args, "--")
	if at < 0 {
		at = len(args)
	}
	args = slices.Insert(args[:at:at], at, "--help")
	var out, errs bytes.Buffer
	if code := cli.Main(args, &out, &errs); code != 0 {
		return "", errs.String()
	}
	usage := usageRE.FindStringSubmatch(out.String())
	if usage == nil {
		return "", "no usage in: " + out.String()
	}
	if strings.Contains(usage[1], "[command]") && !strings.HasPrefix(args[0], "-") {
		return "", "there is no such subcommand"
	}
	return out.String(), ""
}

func TestCommandsInDocumentsExist(t *testing.T) {
	n := 0
	for name, text := range documents(t) {
		for _, c := range commands(text, "heddle") {
			n++
			if _, fault := help(c); fault != "" {
				t.Errorf("%s: heddle %s: %s", name, c, fault)
			}
		}
	}
	if n < 10 {
		t.Errorf("found %d commands in all documents: want those of the README at least", n)
	}
	for _, wrong := range []string{"nothing", "status --no-such-flag", "network nothing"} {
		if _, fault := help(wrong); fault == "" {
			t.Errorf("heddle %s is taken for a command", wrong)
		}
	}
}

func TestMakeTargetsInDocumentsExist(t *testing.T) {
	makefile, err := os.ReadFile("../Makefile")
	if err != nil {
		t.Fatal(err)
	}
	var targets []string
	for _, m := range targetRE.FindAllStringSubmatch(string(makefile), -1) {
		targets = append(targets, m[1])
	}
	for name, text := range documents(t) {
		for _, c := range commands(text, "make") {
			if target := strings.Fields(c)[0]; !slices.Contains(targets, target) {
				t.Errorf("%s: make %s: there is no such target", name, target)
			}
		}
	}
}

func TestLinksInDocumentsLeadSomewhere(t *testing.T) {
	for name, text := range documents(t) {
		for _, l := range linkRE.FindAllStringSubmatch(text, -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), l[1])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func TestConfigurationNamesEveryFieldAndFlag(t *testing.T) {
	text := documents(t)["configuration.md"]
	var fields func(prefix string, of reflect.Type)
	fields = func(prefix string, of reflect.Type) {
		for i := range of.NumField() {
			name, _, _ := strings.Cut(of.Field(i).Tag.Get("json"), ",")
			if in := of.Field(i).Type; in == reflect.TypeFor[config.Store]() || in == reflect.TypeFor[config.BGP]() {
				fields(name+".", in)
				continue
			}
			if !strings.Contains(text, "| `"+prefix+name+"` |") {
				t.Errorf("configuration.md lacks the field %s%s", prefix, name)
			}
		}
	}
	fields("", reflect.TypeFor[config.Config]())
	usage, fault := help("agent")
	if fault != "" {
		t.Fatal(fault)
	}
	for _, f := range flagRE.FindAllStringSubmatch(usage, -1) {
		if f[1] != "--help" && !strings.Contains(text, "`"+f[1]+"`") {
			t.Errorf("configuration.md lacks the flag %s of heddle agent", f[1])
		}
	}
}

func TestNetConfsInDocumentsAreTaken(t *testing.T) {
	blocks := regexp.MustCompile("(?s)```json\n(.*?)```")
	n := 0
	for name, text := range documents(t) {
		for _, b := range blocks.FindAllStringSubmatch(text, -1) {
			n++
			if _, err := flannel.ParseNetConf([]byte(b[1])); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if n < 5 {
		t.Errorf("found %d net-conf.json in all documents, want those of flannel.md at least", n)
	}
}

func TestTroubleshootingNamesEveryProblem(t *testing.T) {
	text := documents(t)["troubleshooting.md"]
	var files []string
	for _, pattern := range []string{"../internal/*/*.go", "../internal/*/*/*.go"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, found...)
	}
	codes := map[string]string{}
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		source, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range codeRE.FindAllStringSubmatch(string(source), -1) {
			codes[m[1]] = f
		}
		if strings.Contains(f, "/plan/") {
			for _, m := range planRE.FindAllStringSubmatch(string(source), -1) {
				codes[m[1]] = f
			}
		}
	}
	if len(codes) < 10 {
		t.Fatalf("found %d problem codes in the source", len(codes))
	}
	for code, file := range codes {
		if !strings.Contains(text, "| `"+code+"` |") {
			t.Errorf("troubleshooting.md lacks %s (%s)", code, file)
		}
	}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(text, -1) {
		if codes[m[1]] == "" {
			t.Errorf("troubleshooting.md has %s, which nothing reports", m[1])
		}
	}
}
