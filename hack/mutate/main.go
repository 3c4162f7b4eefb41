// SPDX-License-Identifier: Apache-2.0

// Command mutate plants faults in the code that counts, one after the other, and says which of them the tests
// find. It fails if one survives, or can't be planted any more. The work tree stays as it is: the go command
// is given other contents for the files.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// patience is more than the tests of a package take. A fault that makes them hang is found.
const patience = time.Minute

// untold are tests of tests, which would take long and find nothing.
const untold = "Broken"

func main() {
	only := flag.String("run", "", "plant only the faults whose name matches this regular expression")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, *only); err != nil {
		fmt.Fprintln(os.Stderr, "mutate:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, only string) error {
	chosen, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("reading -run: %w", err)
	}
	dir, err := os.MkdirTemp("", "weir-mutate")
	if err != nil {
		return fmt.Errorf("making a folder for the faults: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if by, err := (fault{tests: all()}).plant(ctx, dir); err != nil {
		return fmt.Errorf("running the tests without a fault: %w", err)
	} else if by != "" {
		return fmt.Errorf("the tests fail without a fault: %s", by)
	}
	planted, survived := 0, 0
	for _, f := range faults {
		if !chosen.MatchString(f.name) {
			continue
		}
		start := time.Now()
		by, err := f.plant(ctx, dir)
		if err != nil {
			return fmt.Errorf("planting %q: %w", f.name, err)
		}
		planted++
		verdict := "killed by " + by
		if by == "" {
			survived++
			verdict = "SURVIVED"
		}
		fmt.Fprintf(out, "%-62s %3.0f s  %s\n", f.name, time.Since(start).Seconds(), verdict)
	}
	fmt.Fprintf(out, "%d faults planted, %d survived\n", planted, survived)
	if survived > 0 {
		return errors.New("the tests don't find every fault")
	}
	return nil
}

// all gives the packages that have to notice a fault.
func all() []string {
	var packages []string
	for _, f := range faults {
		packages = append(packages, f.tests...)
	}
	slices.Sort(packages)
	return slices.Compact(packages)
}

// plant runs the tests with the fault, and gives the name of one that fails. It is empty if none does.
func (f fault) plant(ctx context.Context, dir string) (string, error) {
	overlay, err := f.overlay(dir)
	if err != nil {
		return "", err
	}
	if said, err := test(ctx, f.tests, "-overlay", overlay, "-run", "^$"); err != nil {
		return "", fmt.Errorf("compiling it: %w\n%s", err, said)
	}
	said, err := test(ctx, f.tests, "-overlay", overlay, "-failfast", "-skip", untold)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err == nil {
		return "", nil
	}
	return culprit(said), nil
}

// test runs the tests of some packages, and gives what they said.
func test(ctx context.Context, packages []string, flags ...string) ([]byte, error) {
	args := append([]string{"test", "-count=1", "-timeout", patience.String()}, flags...)
	return exec.CommandContext(ctx, "go", append(args, packages...)...).CombinedOutput() //nolint:gosec // The arguments are those of the table.
}

var failed = regexp.MustCompile(`--- FAIL: (\S+)`)

// culprit is the innermost test that failed, or what else there is to say.
func culprit(said []byte) string {
	all := failed.FindAllSubmatch(said, -1)
	if len(all) == 0 {
		line, _, _ := bytes.Cut(said, []byte("\n"))
		return string(line)
	}
	longest := ""
	for _, m := range all {
		if name := string(m[1]); len(name) > len(longest) {
			longest = name
		}
	}
	return longest
}

// overlay writes the changed files, and what tells the go command to read them in place of the others.
func (f fault) overlay(dir string) (string, error) {
	contents, err := f.contents()
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for path, text := range contents {
		original, err := filepath.Abs(path)
		if err != nil {
			return "", fmt.Errorf("finding %s: %w", path, err)
		}
		changed := filepath.Join(dir, strings.ReplaceAll(path, "/", "_"))
		if err := os.WriteFile(changed, []byte(text), 0o600); err != nil {
			return "", fmt.Errorf("writing %s: %w", path, err)
		}
		replace[original] = changed
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", fmt.Errorf("writing the overlay: %w", err)
	}
	overlay := filepath.Join(dir, "overlay.json")
	return overlay, os.WriteFile(overlay, b, 0o600)
}

// contents gives the files as they are with the fault, by their paths.
func (f fault) contents() (map[string]string, error) {
	texts := map[string]string{}
	for _, e := range f.edits {
		if _, ok := texts[e.file]; !ok {
			b, err := os.ReadFile(e.file)
			if err != nil {
				return nil, fmt.Errorf("reading what to change: %w", err)
			}
			texts[e.file] = string(b)
		}
		if n := strings.Count(texts[e.file], e.right); n != 1 {
			return nil, fmt.Errorf("%s has %q %d times, not once", e.file, e.right, n)
		}
		texts[e.file] = strings.Replace(texts[e.file], e.right, e.wrong, 1)
	}
	return texts, nil
}
