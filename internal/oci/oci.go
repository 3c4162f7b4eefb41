// SPDX-License-Identifier: Apache-2.0

// Package oci writes container images without a container engine.
package oci

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
)

// Image is a program with its files, and how it is run. What is written of it depends on nothing but the
// fields: there are no times and no owners, so that the same content has the same digest everywhere.
type Image struct {
	// Name is what the image is called where it is imported, with a tag: "weir-sidecar:v0.1.0".
	Name string
	// Architecture is a GOARCH. The operating system is Linux.
	Architecture string
	// Files are by their absolute paths. All can be read by everybody.
	Files map[string]File
	// Entrypoint is the program with the arguments that come before a container's own.
	Entrypoint []string
	// User is UID:GID. Empty is root.
	User string
	// Compress makes a smaller archive, as is due to a registry. Without it, writing and importing are faster.
	Compress bool
}

// File is a file of an image.
type File struct {
	Content    []byte
	Executable bool
}

// The media types of https://github.com/opencontainers/image-spec, version 1.1.
const (
	typeIndex    = "application/vnd.oci.image.index.v1+json"
	typeManifest = "application/vnd.oci.image.manifest.v1+json"
	typeConfig   = "application/vnd.oci.image.config.v1+json"
	typeLayer    = "application/vnd.oci.image.layer.v1.tar"
)

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Manifests     []descriptor `json:"manifests"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    *platform         `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

type platform struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
}

type config struct {
	platform
	Config runConfig `json:"config"`
	RootFS rootFS    `json:"rootfs"`
}

type runConfig struct {
	User       string   `json:"User,omitempty"`
	Entrypoint []string `json:"Entrypoint"`
	WorkingDir string   `json:"WorkingDir"`
}

type rootFS struct {
	Type    string   `json:"type"`
	DiffIDs []string `json:"diff_ids"`
}

// Write writes the image as an OCI archive: a tar file in the OCI image layout, which containerd, Podman,
// Docker and skopeo read. It returns the digest of the image's manifest.
func (i Image) Write(w io.Writer) (string, error) {
	files, err := i.tarFiles()
	if err != nil {
		return "", fmt.Errorf("writing the layer: %w", err)
	}
	a := archive{tar: tar.NewWriter(w)}
	layer, mediaType := files, typeLayer
	if i.Compress {
		layer, mediaType = compress(files), typeLayer+"+gzip"
	}
	host := platform{Architecture: i.Architecture, OS: "linux"}
	m := manifest{SchemaVersion: 2, MediaType: typeManifest, Layers: []descriptor{a.blob(mediaType, layer)}}
	m.Config = a.blob(typeConfig, marshal(config{
		platform: host,
		Config:   runConfig{User: i.User, Entrypoint: i.Entrypoint, WorkingDir: "/"},
		RootFS:   rootFS{Type: "layers", DiffIDs: []string{digest(files)}},
	}))
	d := a.blob(typeManifest, marshal(m))
	d.Platform = &host
	// The first is what containerd and Docker go by, the second what Podman and skopeo do.
	d.Annotations = map[string]string{"io.containerd.image.name": i.Name, "org.opencontainers.image.ref.name": i.Name}
	a.file("index.json", marshal(index{SchemaVersion: 2, MediaType: typeIndex, Manifests: []descriptor{d}}))
	a.file("oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`))
	return d.Digest, a.close()
}

// tarFiles gives the image's only layer.
func (i Image) tarFiles() ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	made := map[string]bool{}
	for _, name := range slices.Sorted(maps.Keys(i.Files)) {
		for _, dir := range parents(name) {
			if made[dir] {
				continue
			}
			made[dir] = true
			if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755}); err != nil {
				return nil, err
			}
		}
		f := i.Files[name]
		h := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(name, "/"), Mode: 0o644, Size: int64(len(f.Content))}
		if f.Executable {
			h.Mode = 0o755
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.Content); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

// parents gives the folders above a file, the outermost first, without slashes at their ends: of /etc/ssl/cert.pem
// they are etc and etc/ssl.
func parents(name string) []string {
	var dirs []string
	for dir := path.Dir(name); dir != "/" && dir != "."; dir = path.Dir(dir) {
		dirs = append(dirs, strings.TrimPrefix(dir, "/"))
	}
	slices.Reverse(dirs)
	return dirs
}

// compress gives the same bytes for the same content, as long as the Go version is the same.
func compress(content []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write(content) // A buffer takes everything.
	_ = w.Close()
	return b.Bytes()
}

// archive is an OCI image layout in a tar file. Its first error is kept for close.
type archive struct {
	tar *tar.Writer
	err error
}

// blob adds content under its digest.
func (a *archive) blob(mediaType string, content []byte) descriptor {
	d := descriptor{MediaType: mediaType, Digest: digest(content), Size: len(content)}
	a.file("blobs/"+strings.Replace(d.Digest, ":", "/", 1), content)
	return d
}

func (a *archive) file(name string, content []byte) {
	if a.err == nil {
		a.err = a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))})
	}
	if a.err == nil {
		_, a.err = a.tar.Write(content)
	}
}

func (a *archive) close() error {
	if a.err == nil {
		a.err = a.tar.Close()
	}
	if a.err != nil {
		return fmt.Errorf("writing the archive: %w", a.err)
	}
	return nil
}

func digest(content []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(content)) }

// marshal is for our own types, which can't fail to be written as JSON.
func marshal(v any) []byte {
	raw, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return raw
}
