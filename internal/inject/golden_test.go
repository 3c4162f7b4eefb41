// SPDX-License-Identifier: Apache-2.0

package inject_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"github.com/weir-dev/weir/internal/inject"
)

var update = flag.Bool("update", false, "write the golden files")

// golden is what an *.out.yaml holds.
type golden struct {
	Skip string      `json:"skip,omitempty"`
	Pod  *corev1.Pod `json:"pod"`
}

// Each *.in.yaml has a pod, its namespace, and that one's Services.
func TestGolden(t *testing.T) {
	files, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("finding golden files: found %d, %v", len(files), err)
	}
	s := settings(t)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".in.yaml"), func(t *testing.T) {
			pod, ns := parse(t, read(t, file))
			before := pod.DeepCopy()
			var got golden
			var skip *inject.Skip
			if got.Pod, skip = inject.Inject(pod, ns, s); skip != nil {
				got.Skip = skip.Error()
			}
			if diff := cmp.Diff(before, pod); diff != "" {
				t.Errorf("what was given changed (-before +after):\n%s", diff)
			}
			wantGolden(t, strings.Replace(file, ".in.", ".out.", 1), got)
		})
	}
}

// wantGolden compares what JSON tells, as the API server sees no more.
func wantGolden(t *testing.T, file string, got golden) {
	t.Helper()
	text, err := yaml.Marshal(got)
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(file, text, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(read(t, file)), string(text)); diff != "" {
		t.Errorf("outcome (-want +got):\n%s", diff)
	}
}

func settings(t testing.TB) inject.Settings {
	t.Helper()
	s, err := inject.ParseSettings(read(t, "testdata/settings.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	s.Instance = "prod"
	return s
}

func parse(t testing.TB, text []byte) (*corev1.Pod, inject.Namespace) {
	t.Helper()
	docs := strings.Split(string(text), "\n---\n")
	var pod corev1.Pod
	unmarshal(t, docs[0], &pod)
	var namespace corev1.Namespace
	unmarshal(t, docs[1], &namespace)
	ns := inject.Namespace{Name: namespace.Name, Labels: namespace.Labels, Annotations: namespace.Annotations}
	for _, doc := range docs[2:] {
		var s corev1.Service
		unmarshal(t, doc, &s)
		ns.Services = append(ns.Services, s)
	}
	return &pod, ns
}

func unmarshal(t testing.TB, text string, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}
