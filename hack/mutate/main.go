// SPDX-License-Identifier: Apache-2.0

// Command mutate plants faults in the code that counts, one after the other, and says which of them the tests
// find. It fails if one survives, or can't be planted any more. It works on a copy: the work tree stays as it is.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
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
const patience = 10 * time.Minute

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
		return fmt.Errorf("making a folder for the copy: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := copyTo(dir); err != nil {
		return err
	}
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

// copyTo copies all that the packages with faults are made of.
func copyTo(dir string) error {
	for _, folder := range []string{"api", "internal"} {
		if err := os.CopyFS(filepath.Join(dir, folder), os.DirFS(folder)); err != nil {
			return fmt.Errorf("copying %s: %w", folder, err)
		}
	}
	return write(dir, "go.mod", "go.sum")
}

// write writes files of the work tree into the copy, as they are.
func write(dir string, paths ...string) error {
	for _, path := range paths {
		b, err := os.ReadFile(path) //nolint:gosec // The paths are those of the table.
		if err != nil {
			return fmt.Errorf("copying: %w", err)
		}
		if err := os.WriteFile(filepath.Join(dir, path), b, 0o600); err != nil { //nolint:gosec // As are these.
			return fmt.Errorf("copying: %w", err)
		}
	}
	return nil
}

// plant runs the tests with the fault in the copy, and gives the name of one that fails. It is empty if none
// does. The copy is then as it was.
func (f fault) plant(ctx context.Context, dir string) (by string, err error) {
	contents, err := f.contents()
	if err != nil {
		return "", err
	}
	for path, text := range contents {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o600); err != nil {
			return "", fmt.Errorf("changing the copy: %w", err)
		}
	}
	defer func() { err = errors.Join(err, write(dir, slices.Collect(maps.Keys(contents))...)) }()
	if said, err := test(ctx, dir, f.tests, "-run", "^$"); err != nil {
		return "", fmt.Errorf("compiling it: %w\n%s", err, said)
	}
	said, err := test(ctx, dir, f.tests, "-failfast", "-skip", untold)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	if err == nil {
		return "", nil
	}
	return culprit(said), nil
}

// test runs the tests of some packages of the copy, and gives what they said.
func test(ctx context.Context, dir string, packages []string, flags ...string) ([]byte, error) {
	args := append([]string{"test", "-count=1", "-timeout", patience.String()}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, packages...)...) //nolint:gosec // The arguments are those of the table.
	cmd.Dir = dir
	return cmd.CombinedOutput()
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
