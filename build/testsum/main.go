// Testsum reads `go test -json` on standard input, shows what people want to see of it (each
// package's line, the output of what failed, the reasons of skips) and closes with the counts.
//
// It fails when a test or a package failed, and also when no test ran at all.
package main

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
)

func main() {
	logs := flag.Bool("logs", false, "also show what passing tests log")
	flag.Parse()
	s := newSum(os.Stdout)
	s.logs = *logs
	if err := s.read(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(2)
	}
	if !s.close() {
		os.Exit(1)
	}
}

// event is one line of `go test -json` (see `go doc test2json`).
type event struct {
	Action     string
	Package    string
	ImportPath string // of build events
	Test       string
	Output     string
}

// sum counts tests; a test with subtests counts as one more.
type sum struct {
	out             io.Writer
	logs            bool
	output          map[string][]string // by package and test: not yet known whether anybody wants it
	passed, skipped int
	failed          []string
	broken          []string       // packages that failed by themselves: build, TestMain, panic
	reasons         map[string]int // of skips
}

func newSum(out io.Writer) *sum {
	return &sum{out: out, output: map[string][]string{}, reasons: map[string]int{}}
}

// read follows the events to the end. Lines that are not JSON are shown as they are.
func (s *sum) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) == nil && e.Action != "" {
				s.event(e)
			} else {
				fmt.Fprint(s.out, string(line))
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func (s *sum) event(e event) {
	key := e.Package + "\x00" + e.Test
	switch e.Action {
	case "build-output":
		fmt.Fprint(s.out, e.Output)
	case "output":
		s.output[key] = append(s.output[key], e.Output)
		if e.Test == "" && closingLine(e.Output) {
			fmt.Fprint(s.out, e.Output)
		}
	case "pass", "skip", "fail":
		s.end(e, s.output[key])
		delete(s.output, key)
	}
}

// closingLine tells go test's own line of a package ("ok  pkg  1.2s") from the rest.
func closingLine(line string) bool {
	return strings.HasPrefix(line, "ok  \t") || strings.HasPrefix(line, "FAIL\t") || strings.HasPrefix(line, "coverage:")
}

func (s *sum) end(e event, output []string) {
	switch {
	case e.Test == "":
		if e.Action != "fail" {
			return
		}
		if slices.ContainsFunc(s.failed, func(f string) bool { return strings.HasPrefix(f, e.Package+" ") }) {
			return
		}
		s.broken = append(s.broken, e.Package)
		for _, line := range output {
			if !closingLine(line) {
				fmt.Fprint(s.out, line)
			}
		}
	case e.Action == "pass":
		s.passed++
		if s.logs {
			s.show(output)
		}
	case e.Action == "skip":
		s.skipped++
		s.reasons[reason(output)]++
	default:
		s.failed = append(s.failed, e.Package+" "+e.Test)
		fmt.Fprint(s.out, strings.Join(output, ""))
	}
}

// show prints a test's own lines, without go test's.
func (s *sum) show(output []string) {
	for _, line := range output {
		if l := strings.TrimSpace(line); !strings.HasPrefix(l, "=== ") && !strings.HasPrefix(l, "--- ") {
			fmt.Fprint(s.out, line)
		}
	}
}

// reason is what a skipped test said: its first line that is not go test's own.
func reason(output []string) string {
	for _, line := range output {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "=== ") || strings.HasPrefix(line, "--- ") {
			continue
		}
		if _, text, ok := strings.Cut(line, ": "); ok {
			return text
		}
		return line
	}
	return "no reason given"
}

// close prints the end and reports whether all is well.
func (s *sum) close() bool {
	for _, r := range sortedKeys(s.reasons) {
		fmt.Fprintf(s.out, "skipped %d: %s\n", s.reasons[r], r)
	}
	for _, f := range s.failed {
		fmt.Fprintf(s.out, "failed: %s\n", f)
	}
	for _, p := range s.broken {
		fmt.Fprintf(s.out, "failed: package %s\n", p)
	}
	failed := len(s.failed) + len(s.broken)
	fmt.Fprintf(s.out, "%d passed, %d failed, %d skipped\n", s.passed, failed, s.skipped)
	if s.passed+failed == 0 {
		fmt.Fprintln(s.out, "no test ran")
		return false
	}
	return failed == 0
}

func sortedKeys(m map[string]int) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
