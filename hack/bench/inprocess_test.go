// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

func TestLocals(t *testing.T) {
	keys := localKeys(2)
	for _, l := range locals {
		t.Run(l.name+" admits a whole burst of a key, and refuses the next", func(t *testing.T) {
			open, err := l.open(2)
			if err != nil {
				t.Fatal(err)
			}
			decide := open()
			for i := range burst {
				if allowed, err := decide(t.Context(), keys[0]); !allowed || err != nil {
					t.Fatalf("request %d is allowed: %t, %v", i, allowed, err)
				}
			}
			// Whoever takes long to ask so often has got some back.
			for range slow {
				if allowed, err := decide(t.Context(), keys[0]); !allowed || err != nil {
					if err != nil {
						t.Error(err)
					}
					return
				}
			}
			t.Error("no request above the burst is refused")
		})
	}
}
