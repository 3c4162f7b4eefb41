// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

const (
	// slowest is how long a test may take, without a fault, that is run before those that take longer.
	slowest = time.Second
	// patience is how long tests may take at first, and shortest how long they may at least with a fault. One that
	// makes them hang is found.
	patience = 10 * time.Minute
	shortest = 30 * time.Second
	// untold are tests of tests, which would take long and find nothing.
	untold = "Broken"
)

// suite is the tests of a package of the copy.
type suite struct {
	// dir is that of the package, and binary its compiled tests.
	dir, binary string
	// slow has the tests that took more than slowest.
	slow []string
	// limit is how long they may take, all together.
	limit time.Duration
}

// measure runs the tests as they are, to see that they pass, and which of them are quick.
func measure(ctx context.Context, dir string, packages []string) (map[string]suite, error) {
	suites := map[string]suite{}
	for _, p := range packages {
		s := suite{dir: filepath.Join(dir, p), binary: filepath.Join(dir, strings.ReplaceAll(p, "/", "-")+".test"), limit: patience}
		if err := s.compile(ctx); err != nil {
			return nil, err
		}
		start := time.Now()
		said, passed := s.run(ctx, "-test.v", "-test.skip", untold)
		if !passed {
			return nil, fmt.Errorf("those of %s: %s", p, culprit(said))
		}
		s.limit, s.slow = shortest+5*time.Since(start), slow(said)
		suites[p] = s
	}
	return suites, ctx.Err()
}

// hunt runs the tests of packages until one fails, and gives its name. The quick ones of all of them come first: they
// find most, and whoever survives them has all the others to face.
func hunt(ctx context.Context, suites []suite) (by string, err error) {
	var late []suite
	for _, s := range suites {
		if err := s.compile(ctx); err != nil {
			return "", err
		}
		if said, passed := s.run(ctx, s.quickly()...); !passed {
			return culprit(said), ctx.Err()
		}
		if len(s.slow) > 0 {
			late = append(late, s)
		}
	}
	for _, s := range late {
		if said, passed := s.run(ctx, s.slowly()...); !passed {
			return culprit(said), ctx.Err()
		}
	}
	return "", ctx.Err()
}

func (s suite) compile(ctx context.Context) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-c", "-ldflags=-s -w", "-o", s.binary, ".") //nolint:gosec // The paths are those of the table.
	cmd.Dir = s.dir
	if said, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compiling it: %w\n%s", err, said)
	}
	return nil
}

func (s suite) quickly() []string { return []string{"-test.skip", untold + "|" + anyOf(s.slow)} }

func (s suite) slowly() []string { return []string{"-test.skip", untold, "-test.run", anyOf(s.slow)} }

// anyOf gives a regular expression for these tests alone. There is none without a name.
func anyOf(names []string) string { return "^(" + strings.Join(names, "|") + ")$" }

// run runs tests until one fails, and gives what they said.
func (s suite) run(ctx context.Context, flags ...string) (said []byte, passed bool) {
	args := append([]string{"-test.failfast", "-test.timeout", s.limit.String()}, flags...)
	cmd := exec.CommandContext(ctx, s.binary, args...) //nolint:gosec // The arguments are ours.
	cmd.Dir = s.dir
	said, err := cmd.CombinedOutput()
	return said, err == nil
}

var ran = regexp.MustCompile(`(?m)^--- PASS: (\S+) \((\S+)\)$`)

// slow gives the tests that took more than slowest.
func slow(said []byte) []string {
	var names []string
	for _, m := range ran.FindAllSubmatch(said, -1) {
		if took, err := time.ParseDuration(string(m[2])); err != nil || took > slowest {
			names = append(names, string(m[1]))
		}
	}
	return names
}

var (
	failed = regexp.MustCompile(`--- FAIL: (\S+)`)
	hung   = regexp.MustCompile(`panic: test timed out after \S+\n\s+running tests:\n\s+(\S+)`)
)

// culprit is the innermost test that failed, or what else there is to say.
func culprit(said []byte) string {
	if m := hung.FindSubmatch(said); m != nil {
		return string(m[1]) + ", which hangs"
	}
	longest := ""
	for _, m := range failed.FindAllSubmatch(said, -1) {
		if name := string(m[1]); len(name) > len(longest) {
			longest = name
		}
	}
	if longest != "" {
		return longest
	}
	line, _, _ := bytes.Cut(said, []byte("\n"))
	return string(line)
}
