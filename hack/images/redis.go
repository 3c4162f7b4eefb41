// SPDX-License-Identifier: Apache-2.0

package main

import (
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/weir-dev/weir/internal/oci"
)

// libraryDirs are where Debian has its libraries.
var libraryDirs = []string{"/lib/*-linux-gnu", "/usr/lib/*-linux-gnu", "/lib64", "/usr/lib64"}

// redis packs this machine's redis-server, with the libraries that it is linked with.
func redis() (oci.Image, error) {
	find := exec.Command(filepath.Join("hack", "redis.sh")) //nolint:gosec,noctx // Our own script, which may install a package.
	find.Stderr = os.Stderr
	out, err := find.Output()
	if err != nil {
		return oci.Image{}, fmt.Errorf("running hack/redis.sh for redis-server: %w", err)
	}
	server := strings.TrimSpace(string(out))
	files := map[string]oci.File{}
	if err := addProgram(files, server); err != nil {
		return oci.Image{}, err
	}
	return oci.Image{
		Name:         "weir.test/redis:dev",
		Architecture: runtime.GOARCH,
		Files:        files,
		Entrypoint:   []string{server},
		User:         nonRoot,
	}, nil
}

// addProgram adds a program or a library under its own path, with what it needs in turn.
func addProgram(files map[string]oci.File, path string) error {
	if _, done := files[path]; done {
		return nil
	}
	content, err := os.ReadFile(path) //nolint:gosec // What the machine runs anyway.
	if err != nil {
		return fmt.Errorf("packing a program: %w", err)
	}
	files[path] = oci.File{Content: content, Executable: true}
	program, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	defer func() { _ = program.Close() }()
	needed, err := program.ImportedLibraries()
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	for _, name := range needed {
		library, err := findLibrary(name)
		if err != nil {
			return err
		}
		if err := addProgram(files, library); err != nil {
			return err
		}
	}
	if s := program.Section(".interp"); s != nil {
		loader, err := s.Data()
		if err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		return addProgram(files, strings.TrimRight(string(loader), "\x00"))
	}
	return nil
}

func findLibrary(name string) (string, error) {
	for _, pattern := range libraryDirs {
		found, err := filepath.Glob(filepath.Join(pattern, name))
		if err != nil {
			return "", fmt.Errorf("looking for %s: %w", name, err)
		}
		if len(found) > 0 {
			return found[0], nil
		}
	}
	return "", fmt.Errorf("looking for %s: %w", name, fs.ErrNotExist)
}
