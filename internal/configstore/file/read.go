// SPDX-License-Identifier: Apache-2.0

package file

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// extensions are those of policy files. Files of a folder that have another are not looked at.
var extensions = []string{".yaml", ".yml", ".json"}

// read gives the contents of all policy files by their paths, and what kept it from reading a file or
// a folder.
//
// A path that was named and is missing is such a fault: a volume that isn't mounted, or a mistake. A file
// of a folder that is missing is gone.
func read(paths []string) (contents map[string][]byte, faults map[string]error) {
	contents, faults = map[string][]byte{}, map[string]error{}
	for _, p := range paths {
		files, err := list(p)
		if err != nil {
			faults[p] = err
			continue
		}
		for _, f := range files {
			content, err := readRegular(f)
			switch {
			case err == nil:
				contents[f] = content
			case f == p || !errors.Is(err, fs.ErrNotExist):
				faults[f] = err
			}
		}
	}
	return contents, faults
}

// list gives the policy files of a folder, or the path itself when it isn't one.
func list(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		// Hidden are editors' own files, and where a mounted ConfigMap keeps its versions.
		hidden := strings.HasPrefix(e.Name(), ".")
		if !hidden && slices.Contains(extensions, filepath.Ext(e.Name())) {
			files = append(files, filepath.Join(path, e.Name()))
		}
	}
	return files, nil
}

// readRegular reads a file, and refuses what is none: a pipe would be read but once, and block for ever.
func readRegular(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "read", Path: path, Err: errors.New("not a regular file")}
	}
	return os.ReadFile(path) //nolint:gosec // The user says what to read.
}
