// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestFaults(t *testing.T) {
	for _, f := range faults {
		t.Run(f.name+" can be planted", func(t *testing.T) {
			files, err := f.files("../..")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.change(files); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestCulprit(t *testing.T) {
	t.Run("the innermost test is the one", func(t *testing.T) {
		said := "--- FAIL: TestStore (0.10s)\n    --- FAIL: TestStore/a_denied_request_charges_nothing (0.01s)\nFAIL\n"
		if got, want := culprit([]byte(said)), "TestStore/a_denied_request_charges_nothing"; got != want {
			t.Errorf("got %s, not %s", got, want)
		}
	})
	t.Run("without one, what was said first is", func(t *testing.T) {
		if got, want := culprit([]byte("panic: no such counter\n\ngoroutine 1\n")), "panic: no such counter"; got != want {
			t.Errorf("got %s, not %s", got, want)
		}
	})
	t.Run("one that hangs is told, whatever was said before", func(t *testing.T) {
		said := "redis: connection refused\npanic: test timed out after 1m0s\n\trunning tests:\n\t\tTestStore/a_request_returns (58s)\n"
		if got, want := culprit([]byte(said)), "TestStore/a_request_returns, which hangs"; got != want {
			t.Errorf("got %s, not %s", got, want)
		}
	})
}

func TestSlow(t *testing.T) {
	t.Run("tests of more than a second are slow, whatever is in them", func(t *testing.T) {
		said := "--- PASS: TestStore (0.28s)\n--- PASS: TestCluster (3.15s)\n    --- PASS: TestCluster/a_shard (2.15s)\n--- PASS: TestShards (1.01s)\nPASS\n"
		if diff := cmp.Diff([]string{"TestCluster", "TestShards"}, slow([]byte(said))); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}

func TestPackagesOf(t *testing.T) {
	t.Run("each is there once", func(t *testing.T) {
		some := []fault{{tests: []string{"b", "a"}}, {tests: []string{"c", "a"}}}
		if diff := cmp.Diff([]string{"a", "b", "c"}, packagesOf(some)); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	})
}

func TestChoose(t *testing.T) {
	t.Run("an empty expression chooses all", func(t *testing.T) {
		if got, err := choose(""); len(got) != len(faults) || err != nil {
			t.Errorf("got %d of %d, %v", len(got), len(faults), err)
		}
	})
	t.Run("one that no fault matches is an error", func(t *testing.T) {
		if got, err := choose("nothing like it"); err == nil {
			t.Errorf("got %d faults", len(got))
		}
	})
}
