// SPDX-License-Identifier: Apache-2.0

// Command images builds our images as OCI archives, without a container engine. What the Dockerfile builds for
// those who have one is the same. It takes the names of images, and writes dist/NAME.tar for each.
package main

import (
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
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/weir-dev/weir/internal/oci"
)

// nonRoot is the user of every image.
const nonRoot = "65532:65532"

// certificates is where Go looks for roots first, in our images and on Debian.
const certificates = "/etc/ssl/certs/ca-certificates.crt"

// images are those that can be built.
var images = map[string]func(context.Context, builder) (oci.Image, error){
	"weir-manager": func(ctx context.Context, b builder) (oci.Image, error) { return b.shipped(ctx, "manager") },
	"weir-sidecar": func(ctx context.Context, b builder) (oci.Image, error) { return b.shipped(ctx, "sidecar") },
	"workload":     func(ctx context.Context, b builder) (oci.Image, error) { return b.workload(ctx) },
	"redis":        func(context.Context, builder) (oci.Image, error) { return redis() },
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "images:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout io.Writer) error {
	b := builder{root: "."}
	var out string
	fs := flag.NewFlagSet("images", flag.ContinueOnError)
	fs.StringVar(&b.version, "version", "dev", "`version` that the programs tell, and the tag of the images")
	fs.StringVar(&b.architecture, "arch", runtime.GOARCH, "`GOARCH` to build for")
	fs.StringVar(&out, "o", "dist", "`folder` to write the archives to")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if err := os.MkdirAll(out, 0o755); err != nil { //nolint:gosec // Nothing in it is secret.
		return fmt.Errorf("making a folder: %w", err)
	}
	for _, name := range fs.Args() {
		build, ok := images[name]
		if !ok {
			return fmt.Errorf("no image is called %q: want %s", name, strings.Join(slices.Sorted(maps.Keys(images)), ", "))
		}
		image, err := build(ctx, b)
		if err != nil {
			return fmt.Errorf("building %s: %w", name, err)
		}
		path := filepath.Join(out, name+".tar")
		digest, err := write(image, path)
		if err != nil {
			return fmt.Errorf("building %s: %w", name, err)
		}
		fmt.Fprintln(stdout, path, image.Name, digest)
	}
	return nil
}

// write writes an archive, whole or not at all.
func write(image oci.Image, path string) (string, error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return "", fmt.Errorf("writing the archive: %w", err)
	}
	digest, err := image.Write(f)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return "", errors.Join(err, os.Remove(f.Name()))
	}
	return digest, nil
}

// builder builds images from a tree of our sources.
type builder struct {
	root         string
	version      string
	architecture string
}

// shipped builds an image that users run: FROM scratch, with no more than the program, and the certificates for
// rediss:// and issuers.
func (b builder) shipped(ctx context.Context, name string) (oci.Image, error) {
	program, err := b.compile(ctx, "./cmd/"+name)
	if err != nil {
		return oci.Image{}, err
	}
	roots, err := os.ReadFile(certificates)
	if err != nil {
		return oci.Image{}, fmt.Errorf("reading certificates: %w", err)
	}
	path := "/weir-" + name
	return oci.Image{
		// In full, as kubelet asks for it when a pod says weir-NAME.
		Name:         "docker.io/library/weir-" + name + ":" + b.version,
		Architecture: b.architecture,
		Files:        map[string]oci.File{path: {Content: program, Executable: true}, certificates: {Content: roots}},
		Entrypoint:   []string{path},
		User:         nonRoot,
		Compress:     true,
	}, nil
}

// workload builds the image that tests run in pods.
func (b builder) workload(ctx context.Context) (oci.Image, error) {
	program, err := b.compile(ctx, "./test/workload")
	if err != nil {
		return oci.Image{}, err
	}
	return oci.Image{
		Name:         "weir.test/workload:dev",
		Architecture: b.architecture,
		Files:        map[string]oci.File{"/workload": {Content: program, Executable: true}},
		Entrypoint:   []string{"/workload"},
		User:         nonRoot,
	}, nil
}

// compile gives a static program, whose bytes follow from the sources, the version and the version of Go: no
// path and no time is in them.
func (b builder) compile(ctx context.Context, pkg string) ([]byte, error) {
	dir, err := os.MkdirTemp("", "weir-images-")
	if err != nil {
		return nil, fmt.Errorf("making a folder: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := filepath.Join(dir, "program")
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags", "-s -w -X main.version="+b.version, "-o", path, pkg) //nolint:gosec // Our own packages.
	build.Dir = b.root
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+b.architecture, "GOFLAGS=", "GOWORK=off")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		return nil, fmt.Errorf("compiling %s: %w", pkg, err)
	}
	return os.ReadFile(path) //nolint:gosec // Our own folder.
}
