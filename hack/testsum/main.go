// SPDX-License-Identifier: Apache-2.0

// Command testsum sums up what go test -json says: what failed, in full, what tests have measured, the slowest of
// them, and how many passed. It fails if a test failed or was skipped, or if there was none.
//
//	go test -json ./... | testsum unit     tells of each package as it ends
//	testsum -total FILE...                 prints the sum over several runs
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

func main() {
	if err := run(os.Args[1:], os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "testsum:", err)
		os.Exit(1)
	}
}

func run(args []string, in io.Reader, out io.Writer) error {
	if len(args) > 0 && args[0] == "-total" {
		return total(args[1:], out)
	}
	if len(args) != 1 {
		return errors.New("it takes a name, or -total and files")
	}
	s := newSummary(out)
	if err := s.read(in); err != nil {
		return err
	}
	s.printMeasured()
	s.printSlowest()
	fmt.Fprintf(out, "%s: %s\n", args[0], s.counts)
	return s.verdict()
}

func total(paths []string, out io.Writer) error {
	s := newSummary(io.Discard)
	for _, path := range paths {
		f, err := os.Open(path) //nolint:gosec // The files are the caller's to choose.
		if err != nil {
			return fmt.Errorf("summing up: %w", err)
		}
		err = s.read(f)
		_ = f.Close()
		if err != nil {
			return fmt.Errorf("summing up %s: %w", path, err)
		}
	}
	fmt.Fprintln(out, s.counts)
	return s.verdict()
}

// event is one line of go test -json; see go doc test2json.
type event struct {
	Action  string
	Package string
	// Test is empty for what is said of the whole package.
	Test string
	// Elapsed is in seconds.
	Elapsed float64
	Output  string
	// ImportPath stands in for Package while building.
	ImportPath string
	// FailedBuild is the ImportPath of the build that kept the package from running.
	FailedBuild string
}

// counts are of tests and subtests alike, as go test -v lists them.
type counts struct{ passed, failed, skipped int }

func (c counts) String() string {
	return fmt.Sprintf("%d passed, %d failed, %d skipped", c.passed, c.failed, c.skipped)
}

type ended struct {
	name    string
	elapsed float64
}

type summary struct {
	counts
	out io.Writer
	// said holds the output of what has not ended yet, by package or by package and test.
	said map[string]*strings.Builder
	// failures counts each package's failed tests.
	failures map[string]int
	tests    []ended
	// measured are the lines in which tests that passed tell of a bound.
	measured []string
}

func newSummary(out io.Writer) *summary {
	return &summary{out: out, said: map[string]*strings.Builder{}, failures: map[string]int{}}
}

func (s *summary) read(in io.Reader) error {
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var e event
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			// The go command itself speaks plainly, for example of a broken go.mod.
			fmt.Fprintln(s.out, lines.Text())
			continue
		}
		s.add(e)
	}
	if err := lines.Err(); err != nil {
		return fmt.Errorf("reading events: %w", err)
	}
	return nil
}

func (s *summary) add(e event) {
	switch e.Action {
	case "output":
		s.say(e.Package+" "+e.Test, e.Output)
	case "build-output":
		s.say(e.ImportPath, e.Output)
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.endPackage(e)
		} else {
			s.endTest(e)
		}
	}
}

func (s *summary) say(who, what string) {
	if s.said[who] == nil {
		s.said[who] = &strings.Builder{}
	}
	s.said[who].WriteString(what)
}

// recall gives what was said, once.
func (s *summary) recall(who string) string {
	b := s.said[who]
	delete(s.said, who)
	if b == nil {
		return ""
	}
	return b.String()
}

func (s *summary) endTest(e event) {
	said := s.recall(e.Package + " " + e.Test)
	switch e.Action {
	case "pass":
		s.passed++
		s.tests = append(s.tests, ended{name: e.Package + " " + e.Test, elapsed: e.Elapsed})
		for _, match := range measurement.FindAllStringSubmatch(said, -1) {
			s.measured = append(s.measured, named(match[1], e.Test))
		}
	case "fail":
		s.failed++
		s.failures[e.Package]++
		fmt.Fprintf(s.out, "\nFAILED %s %s\n%s\n", e.Package, e.Test, said)
	case "skip":
		s.skipped++
		fmt.Fprintf(s.out, "\nSKIPPED %s %s\n%s\n", e.Package, e.Test, said)
	}
}

func (s *summary) endPackage(e event) {
	said := s.recall(e.Package + " ")
	switch e.Action {
	case "pass":
		fmt.Fprintf(s.out, "ok     %s %.1fs\n", e.Package, e.Elapsed)
	case "fail":
		fmt.Fprintf(s.out, "FAIL   %s %.1fs\n", e.Package, e.Elapsed)
		if s.failures[e.Package] == 0 {
			// It didn't build, or TestMain failed: a failure that no test stands for.
			s.failed++
			fmt.Fprintf(s.out, "%s%s\n", s.recall(e.FailedBuild), said)
		}
	}
}

// measurement is how a test says what was to be and what was, after the file and line that go test adds:
// "K14 (node): expected ..., measured ..." or "R2: expected: ...; measured: ...".
var measurement = regexp.MustCompile(`(?m)^\s*\w+\.go:\d+: (.+ \(.+\): expected .+, measured .+|.*expected: .+; measured: .+)$`)

// named puts the name of its test before a measurement that has none.
func named(line, test string) string {
	if strings.HasPrefix(line, "expected:") {
		return test + ": " + line
	}
	return line
}

func (s *summary) printMeasured() {
	for _, line := range s.measured {
		fmt.Fprintln(s.out, "case  ", line)
	}
}

const (
	slowSeconds = 2
	slowestMax  = 10
)

func (s *summary) printSlowest() {
	slow := slices.DeleteFunc(slices.Clone(s.tests), func(t ended) bool { return t.elapsed < slowSeconds })
	slices.SortStableFunc(slow, func(a, b ended) int { return cmp.Compare(b.elapsed, a.elapsed) })
	for _, t := range slow[:min(len(slow), slowestMax)] {
		fmt.Fprintf(s.out, "slow   %s %.1fs\n", t.name, t.elapsed)
	}
}

// verdict is an error unless every test ran and passed.
func (s *summary) verdict() error {
	switch {
	case s.failed > 0:
		return errors.New("a test failed")
	case s.skipped > 0:
		return errors.New("a test was skipped, which counts as a failure here")
	case s.passed == 0:
		return errors.New("no test ran")
	}
	return nil
}
