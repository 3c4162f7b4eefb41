// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/json"
	"sigs.k8s.io/yaml"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/match"
)

// kind is the only kind of object that files may hold, but for [kustomization].
const kind = "RateLimitPolicy"

// kustomization is what tells kustomize which files belong together. It often lies among them, and holds no
// policy.
var kustomization = schema.GroupKind{Group: "kustomize.config.k8s.io", Kind: "Kustomization"}

// defaultNamespace is the namespace of a policy that names none.
const defaultNamespace = "default"

// errEmpty is what a truncated file looks like. A file that is meant to hold no policies says so in a
// comment.
var errEmpty = errors.New("the file is empty; a file without policies must hold a comment")

// Compile makes a policy what enforcers know of it. Its error names the field that is wrong.
type Compile func(*v1alpha1.RateLimitPolicy) (match.Policy, error)

// parse reads the policies of one file, and gives an error for each document that isn't one. A wrong
// document takes none of its neighbors with it.
func parse(content []byte, compile Compile) ([]match.Policy, []error) {
	if len(bytes.TrimSpace(content)) == 0 {
		return nil, []error{errEmpty}
	}
	var policies []match.Policy
	var errs []error
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(content)))
	for n := 1; ; n++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return policies, errs
		}
		if err != nil {
			return policies, append(errs, fmt.Errorf("document %d: %w", n, err))
		}
		p, err := decode(document)
		if err != nil {
			errs = append(errs, fmt.Errorf("document %d: %w", n, err))
			continue
		}
		if p == nil {
			continue
		}
		compiled, err := compile(p)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %s/%s: %w", kind, p.Namespace, p.Name, err))
			continue
		}
		policies = append(policies, compiled)
	}
}

// decode reads one document. It gives nil for a kustomization, and for one that holds nothing but comments.
func decode(document []byte) (*v1alpha1.RateLimitPolicy, error) {
	object, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return nil, err
	}
	if string(object) == "null" {
		return nil, nil
	}
	var t metav1.TypeMeta
	if err := json.UnmarshalCaseSensitivePreserveInts(object, &t); err != nil {
		return nil, err
	}
	switch {
	case t.GroupVersionKind().GroupKind() == kustomization:
		return nil, nil
	case t.Kind != kind || t.APIVersion != v1alpha1.GroupVersion.String():
		return nil, fmt.Errorf("it is of kind %q of %q, want %s of %s", t.Kind, t.APIVersion, kind, v1alpha1.GroupVersion)
	}
	var p v1alpha1.RateLimitPolicy
	unknown, err := json.UnmarshalStrict(object, &p)
	if err := errors.Join(append(unknown, err)...); err != nil {
		return nil, err
	}
	if p.Name == "" {
		return nil, errors.New("metadata.name is missing")
	}
	if p.Namespace == "" {
		p.Namespace = defaultNamespace
	}
	return &p, nil
}
