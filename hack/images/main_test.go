// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/oci"
)

// root is our own tree.
const root = "../.."

// shipped are the names of the images that the Dockerfile has a target for.
var shipped = []string{"manager", "sidecar"}

func TestShippedImages(t *testing.T) {
	file := dockerfile(t)
	// The second build is that of somebody else's clone, of which it has no more than a container engine would.
	clone := t.TempDir()
	for _, name := range file.copied {
		copyTree(t, filepath.Join(root, name), filepath.Join(clone, name))
	}
	for _, name := range shipped {
		image := build(t, root, name)
		t.Run("two builds of "+name+" have one digest", func(t *testing.T) {
			if here, there := digest(t, image), digest(t, build(t, clone, name)); here != there {
				t.Errorf("got %s and %s", here, there)
			}
		})
		t.Run("the Dockerfile builds the same "+name, func(t *testing.T) {
			got := target{files: slices.Sorted(maps.Keys(image.Files)), user: image.User, entrypoint: image.Entrypoint}
			if diff := cmp.Diff(file.target(name), got, cmp.AllowUnexported(target{})); diff != "" {
				t.Errorf("image (-Dockerfile +ours):\n%s", diff)
			}
		})
	}
}

func TestRedisIsPackedWithItsLibraries(t *testing.T) {
	t.Chdir(root)
	image, err := redis()
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{image.Entrypoint[0], "libc.so.6", "ld-linux"} {
		if !slices.ContainsFunc(slices.Collect(maps.Keys(image.Files)), func(path string) bool { return strings.Contains(path, want) }) {
			t.Errorf("%s is not in the image", want)
		}
	}
}

func TestAnUnknownImageIsRefused(t *testing.T) {
	err := run(t.Context(), []string{"-o", t.TempDir(), "weir-manger"}, io.Discard)
	want := `no image is called "weir-manger": want redis, weir-manager, weir-sidecar, workload`
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func build(t *testing.T, root, name string) oci.Image {
	t.Helper()
	image, err := builder{root: root, version: "v1.2.3", architecture: "amd64"}.shipped(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return image
}

func digest(t *testing.T, image oci.Image) string {
	t.Helper()
	digest, err := image.Write(io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return digest
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	if info.IsDir() {
		err = os.CopyFS(to, os.DirFS(from))
	} else {
		var content []byte
		content, err = os.ReadFile(from)
		err = errors.Join(err, os.WriteFile(to, content, 0o600))
	}
	if err != nil {
		t.Fatal(err)
	}
}

// target is what the image of a Dockerfile's target holds.
type target struct {
	files      []string
	user       string
	entrypoint []string
}

// stages are a Dockerfile's, by name, as lines. Copied is what its build stage takes of our tree.
type stages struct {
	lines  map[string][]string
	copied []string
}

func dockerfile(t *testing.T) stages {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	s := stages{lines: map[string][]string{}}
	var stage string
	for line := range strings.Lines(string(raw)) {
		words := strings.Fields(line)
		switch {
		case len(words) == 0 || words[0] == "#":
		case words[0] == "FROM":
			stage = words[len(words)-1]
			s.lines[stage] = []string{line}
		case words[0] == "COPY" && stage == "build":
			s.copied = append(s.copied, words[1:len(words)-1]...)
		default:
			s.lines[stage] = append(s.lines[stage], line)
		}
	}
	return s
}

// target follows a stage back to scratch.
func (s stages) target(name string) target {
	var t target
	for _, line := range s.lines[name] {
		words := strings.Fields(line)
		switch words[0] {
		case "FROM":
			if words[1] != "scratch" {
				t = s.target(words[1])
			}
		case "COPY":
			to := words[len(words)-1]
			if strings.HasSuffix(to, "/") {
				to += filepath.Base(words[len(words)-2])
			}
			t.files = append(t.files, to)
		case "USER":
			t.user = words[1]
		case "ENTRYPOINT":
			t.entrypoint = regexp.MustCompile(`/[\w-]+`).FindAllString(line, -1)
		default:
			panic(fmt.Sprintf("the test doesn't know what %s does to an image", words[0]))
		}
	}
	slices.Sort(t.files)
	return t
}
