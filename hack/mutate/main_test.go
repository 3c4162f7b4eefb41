// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestFaults(t *testing.T) {
	t.Chdir("../..")
	for _, f := range faults {
		t.Run(f.name+" can be planted", func(t *testing.T) {
			if _, err := f.contents(); err != nil {
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
		if got, want := culprit([]byte("panic: test timed out\n\ngoroutine 1\n")), "panic: test timed out"; got != want {
			t.Errorf("got %s, not %s", got, want)
		}
	})
}
