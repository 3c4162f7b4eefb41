// SPDX-License-Identifier: Apache-2.0

// Command mutate plants faults in the code that counts, one after the other, and says which of them the tests
// find. It fails if one survives, or can't be planted any more. It works on a copy: the work tree stays as it is.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

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
	chosen, err := choose(only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "weir-mutate")
	if err != nil {
		return fmt.Errorf("making a folder for the copy: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	if err := copyTo(dir); err != nil {
		return err
	}
	start := time.Now()
	suites, err := measure(ctx, dir, packagesOf(chosen))
	if err != nil {
		return fmt.Errorf("running the tests without a fault: %w", err)
	}
	fmt.Fprintf(out, "%-68s %4.0f s  pass\n", "without a fault", time.Since(start).Seconds())
	killed := 0
	for _, f := range chosen {
		planted := time.Now()
		by, err := f.plant(ctx, dir, suites)
		verdict := "killed by " + by
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			verdict = "CAN'T BE PLANTED: " + err.Error()
		case by == "":
			verdict = "SURVIVED"
		default:
			killed++
		}
		fmt.Fprintf(out, "%-68s %4.0f s  %s\n", f.name, time.Since(planted).Seconds(), verdict)
	}
	fmt.Fprintf(out, "%d of %d faults killed, in %s\n", killed, len(chosen), time.Since(start).Round(time.Second))
	if killed < len(chosen) {
		return errors.New("the tests don't find every fault")
	}
	return nil
}

// choose gives the faults whose name matches a regular expression.
func choose(only string) ([]fault, error) {
	matching, err := regexp.Compile(only)
	if err != nil {
		return nil, fmt.Errorf("reading -run: %w", err)
	}
	var chosen []fault
	for _, f := range faults {
		if matching.MatchString(f.name) {
			chosen = append(chosen, f)
		}
	}
	if len(chosen) == 0 {
		return nil, fmt.Errorf("no fault matches %q", only)
	}
	return chosen, nil
}

// packagesOf gives the packages that have to notice one of the faults.
func packagesOf(faults []fault) []string {
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
	module, err := read(".", "go.mod", "go.sum")
	if err != nil {
		return err
	}
	return write(dir, module)
}

// read gives what files have, by their paths from a folder.
func read(dir string, paths ...string) (map[string]string, error) {
	files := map[string]string{}
	for _, path := range paths {
		b, err := os.ReadFile(filepath.Join(dir, path)) //nolint:gosec // The paths are those of the table.
		if err != nil {
			return nil, fmt.Errorf("copying: %w", err)
		}
		files[path] = string(b)
	}
	return files, nil
}

// write writes what files are to have.
func write(dir string, files map[string]string) error {
	for path, text := range files {
		if err := os.WriteFile(filepath.Join(dir, path), []byte(text), 0o600); err != nil {
			return fmt.Errorf("changing the copy: %w", err)
		}
	}
	return nil
}

// plant runs the tests with the fault in the copy, and gives the name of one that fails. It is empty if none
// does. The copy is then as it was.
func (f fault) plant(ctx context.Context, dir string, suites map[string]suite) (by string, err error) {
	right, err := f.files(dir)
	if err != nil {
		return "", err
	}
	wrong, err := f.change(right)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, write(dir, right)) }()
	if err := write(dir, wrong); err != nil {
		return "", err
	}
	return hunt(ctx, f.suites(suites))
}

func (f fault) suites(all map[string]suite) []suite {
	var some []suite
	for _, p := range f.tests {
		some = append(some, all[p])
	}
	return some
}

// files gives those that it changes, by their paths.
func (f fault) files(dir string) (map[string]string, error) {
	var paths []string
	for _, e := range f.edits {
		paths = append(paths, e.file)
	}
	return read(dir, paths...)
}

// change gives the files as they are with the fault.
func (f fault) change(files map[string]string) (map[string]string, error) {
	changed := maps.Clone(files)
	for _, e := range f.edits {
		if n := strings.Count(changed[e.file], e.right); n != 1 {
			return nil, fmt.Errorf("%s has %q %d times, not once", e.file, e.right, n)
		}
		changed[e.file] = strings.Replace(changed[e.file], e.right, e.wrong, 1)
	}
	return changed, nil
}
