// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/limiter/strategy"
	"github.com/weir-dev/weir/internal/match"
)

var update = flag.Bool("update", false, "write the golden files")

// golden is what an *.out.yaml holds.
type golden struct {
	Refusal *refusal      `json:"refusal,omitempty"`
	Target  string        `json:"target"`
	Summary string        `json:"summary"`
	Policy  *match.Policy `json:"policy,omitempty"`
}

type refusal struct {
	Reason  string `json:"reason"`
	Message string `json:"message"`
}

func TestGolden(t *testing.T) {
	for name, in := range inputs(t) {
		t.Run(name, func(t *testing.T) {
			p, workloads := parse(t, in)
			got := outcome(p, workloads)
			file := filepath.Join("testdata", name+".out.yaml")
			if *update {
				write(t, file, got)
			}
			var want golden
			unmarshal(t, read(t, file), &want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("outcome (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCompiledLimitsAreValidToTheStores(t *testing.T) {
	for name, in := range inputs(t) {
		t.Run(name, func(t *testing.T) {
			c, _ := Compile(parse(t, in))
			if err := valid(c); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestEverySampleIsEnforced(t *testing.T) {
	files, err := filepath.Glob("../../config/samples/*.yaml")
	if err != nil || len(files) < 2 {
		t.Fatalf("finding the samples: found %d files, %v", len(files), err)
	}
	for _, f := range files {
		if filepath.Base(f) == "kustomization.yaml" {
			continue
		}
		t.Run(filepath.Base(f), func(t *testing.T) {
			p, _ := parse(t, read(t, f))
			c, err := Standalone(p)
			if err != nil {
				t.Fatal(err)
			}
			if err := valid(c); err != nil {
				t.Error(err)
			}
		})
	}
}

// valid says which limit of a policy no store can count.
func valid(c match.Policy) error {
	for _, l := range c.Limits {
		s, ok := strategy.For(l.Limit.Algorithm)
		if !ok {
			return fmt.Errorf("limit %s: there is no algorithm %s", l.Name, l.Limit.Algorithm)
		}
		if err := s.Validate(&l.Limit); err != nil {
			return fmt.Errorf("limit %s: %w", l.Name, err)
		}
	}
	return nil
}

// outcome is all that this package says of a policy.
func outcome(p *v1alpha1.RateLimitPolicy, workloads Workloads) golden {
	g := golden{Target: Target(p), Summary: Summary(p)}
	c, err := Compile(p, workloads)
	if c.Name != "" {
		g.Policy = &c
	}
	if r := (*Refusal)(nil); errors.As(err, &r) {
		g.Refusal = &refusal{Reason: r.Reason, Message: r.Error()}
	}
	return g
}

// inputs gives the golden inputs by their names.
func inputs(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("testdata/*.in.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("finding golden files: found %d, %v", len(files), err)
	}
	found := map[string][]byte{}
	for _, f := range files {
		found[strings.TrimSuffix(filepath.Base(f), ".in.yaml")] = read(t, f)
	}
	return found
}

// parse reads a policy and the workloads that exist beside it.
func parse(t testing.TB, in []byte) (*v1alpha1.RateLimitPolicy, Workloads) {
	t.Helper()
	policy, workloads, _ := strings.Cut(string(in), "\n---\n")
	var p v1alpha1.RateLimitPolicy
	unmarshal(t, []byte(policy), &p)
	found := Workloads{}
	if workloads == "" {
		return &p, found
	}
	for doc := range strings.SplitSeq(workloads, "\n---\n") {
		ref, w := parseWorkload(t, []byte(doc))
		found[ref] = w
	}
	return &p, found
}

func parseWorkload(t testing.TB, doc []byte) (v1alpha1.TargetRef, Workload) {
	t.Helper()
	var kind struct {
		Kind     string            `json:"kind"`
		Metadata metav1.ObjectMeta `json:"metadata"`
	}
	if err := yaml.Unmarshal(doc, &kind); err != nil {
		t.Fatal(err)
	}
	if kind.Kind != "Service" {
		var d struct {
			Spec struct {
				Selector *metav1.LabelSelector `json:"selector"`
			} `json:"spec"`
		}
		if err := yaml.Unmarshal(doc, &d); err != nil {
			t.Fatal(err)
		}
		return v1alpha1.TargetRef{Group: "apps", Kind: kind.Kind, Name: kind.Metadata.Name}, Workload{Pods: d.Spec.Selector}
	}
	var s struct {
		Spec struct {
			Selector map[string]string `json:"selector"`
			Ports    []struct {
				Name       string             `json:"name"`
				TargetPort intstr.IntOrString `json:"targetPort"`
			} `json:"ports"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(doc, &s); err != nil {
		t.Fatal(err)
	}
	var w Workload
	if len(s.Spec.Selector) > 0 {
		w.Pods = &metav1.LabelSelector{MatchLabels: s.Spec.Selector}
	}
	for _, p := range s.Spec.Ports {
		w.Ports = append(w.Ports, Port{Name: p.Name, Target: p.TargetPort.String()})
	}
	return v1alpha1.TargetRef{Kind: "Service", Name: kind.Metadata.Name}, w
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// unmarshal refuses fields that are not there, so that no case says less than it seems to.
func unmarshal(t testing.TB, b []byte, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict(b, into); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, file string, what any) {
	t.Helper()
	b, err := yaml.Marshal(what)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
}
