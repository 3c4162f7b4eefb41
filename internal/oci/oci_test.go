// SPDX-License-Identifier: Apache-2.0

package oci_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/oci"
)

func TestAnArchiveHoldsTheImage(t *testing.T) {
	for _, compress := range []bool{false, true} {
		t.Run(fmt.Sprintf("compress=%t", compress), func(t *testing.T) {
			archive, digest := write(t, sidecar(compress))
			files := untar(t, archive)

			var index struct {
				Manifests []struct {
					Digest      string
					Annotations map[string]string
				}
			}
			unmarshal(t, files["index.json"].content, &index)
			if got := index.Manifests[0].Digest; got != digest {
				t.Errorf("the index leads to %s, want the returned digest %s", got, digest)
			}
			if got := index.Manifests[0].Annotations["io.containerd.image.name"]; got != "weir-sidecar:v1" {
				t.Errorf("the name is %q", got)
			}

			var manifest struct {
				Config struct{ Digest string }
				Layers []struct{ MediaType, Digest string }
			}
			unmarshal(t, files[blob(digest)].content, &manifest)
			var config map[string]any
			unmarshal(t, files[blob(manifest.Config.Digest)].content, &config)
			layer := files[blob(manifest.Layers[0].Digest)].content
			wantType := "application/vnd.oci.image.layer.v1.tar"
			if compress {
				layer, wantType = gunzip(t, layer), wantType+"+gzip"
			}
			if got := manifest.Layers[0].MediaType; got != wantType {
				t.Errorf("the layer is of type %s, want %s", got, wantType)
			}
			want := map[string]any{
				"architecture": "arm64",
				"os":           "linux",
				"config":       map[string]any{"User": "65532:65532", "Entrypoint": []any{"/weir-sidecar"}, "WorkingDir": "/"},
				"rootfs":       map[string]any{"type": "layers", "diff_ids": []any{fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(layer)))}},
			}
			if diff := cmp.Diff(want, config); diff != "" {
				t.Errorf("config (-want +got):\n%s", diff)
			}
			wantFiles := map[string]entry{
				"etc/":                     {mode: 0o755},
				"etc/ssl/":                 {mode: 0o755},
				"etc/ssl/certificates.crt": {mode: 0o644, content: "roots"},
				"etc/ssl/more.crt":         {mode: 0o644, content: "more roots"},
				"weir-sidecar":             {mode: 0o755, content: "program"},
			}
			if diff := cmp.Diff(wantFiles, untar(t, []byte(layer)), cmp.AllowUnexported(entry{})); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheSameContentGivesTheSameArchive(t *testing.T) {
	first, firstDigest := write(t, sidecar(true))
	second, secondDigest := write(t, sidecar(true))
	if !bytes.Equal(first, second) || firstDigest != secondDigest {
		t.Errorf("got %s and %s, and equal bytes: %t", firstDigest, secondDigest, bytes.Equal(first, second))
	}
}

func TestEveryBlobIsUnderItsDigest(t *testing.T) {
	archive, _ := write(t, sidecar(true))
	blobs := 0
	for name, f := range untar(t, archive) {
		if want, ok := strings.CutPrefix(name, "blobs/sha256/"); ok {
			blobs++
			if got := fmt.Sprintf("%x", sha256.Sum256([]byte(f.content))); got != want {
				t.Errorf("%s holds what has the digest %s", name, got)
			}
		}
	}
	if blobs != 3 {
		t.Errorf("got %d blobs, want a manifest, a config and a layer", blobs)
	}
}

func TestAWriterThatFailsIsTold(t *testing.T) {
	if _, err := sidecar(false).Write(full{}); !errors.Is(err, errFull) {
		t.Errorf("got %v, want %v", err, errFull)
	}
}

func sidecar(compress bool) oci.Image {
	return oci.Image{
		Name:         "weir-sidecar:v1",
		Architecture: "arm64",
		Files: map[string]oci.File{
			"/weir-sidecar":             {Content: []byte("program"), Executable: true},
			"/etc/ssl/certificates.crt": {Content: []byte("roots")},
			"/etc/ssl/more.crt":         {Content: []byte("more roots")},
		},
		Entrypoint: []string{"/weir-sidecar"},
		User:       "65532:65532",
		Compress:   compress,
	}
}

func write(t *testing.T, i oci.Image) (archive []byte, digest string) {
	t.Helper()
	var b bytes.Buffer
	digest, err := i.Write(&b)
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes(), digest
}

func blob(digest string) string { return "blobs/" + strings.Replace(digest, ":", "/", 1) }

type entry struct {
	mode    int64
	content string
}

func untar(t *testing.T, archive []byte) map[string]entry {
	t.Helper()
	files := map[string]entry{}
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = entry{mode: h.Mode, content: string(content)}
	}
}

func gunzip(t *testing.T, s string) string {
	t.Helper()
	r, err := gzip.NewReader(strings.NewReader(s))
	if err != nil {
		t.Fatal(err)
	}
	content, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func unmarshal(t *testing.T, s string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), v); err != nil {
		t.Fatal(err)
	}
}

var errFull = errors.New("no space left")

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errFull }
