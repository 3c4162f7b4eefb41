// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestDefaultSetsWhatTheSchemaSets(t *testing.T) {
	for name, in := range inputs(t) {
		t.Run(name, func(t *testing.T) {
			want, _ := parse(t, defaulted(t, in))
			got, _ := parse(t, in)
			Default(got)
			if diff := cmp.Diff(want.Spec, got.Spec); diff != "" {
				t.Errorf("spec (-schema +Default):\n%s", diff)
			}
		})
	}
}

func TestDefaultTwiceIsTheSameAsOnce(t *testing.T) {
	for name, in := range inputs(t) {
		t.Run(name, func(t *testing.T) {
			once, _ := parse(t, in)
			Default(once)
			twice := once.DeepCopy()
			Default(twice)
			if diff := cmp.Diff(once, twice); diff != "" {
				t.Errorf("policy (-once +twice):\n%s", diff)
			}
		})
	}
}
