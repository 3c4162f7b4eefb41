// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"github.com/weir-dev/weir/internal/redistest"
)

func TestContestants(t *testing.T) {
	entrants, err := enter(t.Context(), redistest.Start(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entrants {
		t.Run(e.name+" admits at first, and refuses in the end", func(t *testing.T) {
			if allowed, err := e.decide(t.Context(), e.keys[0]); !allowed || err != nil {
				t.Errorf("the first request is allowed: %t, %v", allowed, err)
			}
			for range 100 * requests {
				if allowed, err := e.decide(t.Context(), e.keys[0]); err != nil || !allowed {
					if err != nil {
						t.Error(err)
					}
					return
				}
			}
			t.Error("no request is refused")
		})
	}
}
