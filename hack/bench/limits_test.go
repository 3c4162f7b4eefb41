// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
)

func TestDecideTogether(t *testing.T) {
	two := []limiter.Limit{
		{Algorithm: limiter.FixedWindow, Requests: 3, Window: 8784 * time.Hour},
		{Algorithm: limiter.SlidingWindowRing, Requests: 2, Window: time.Hour},
	}
	decide := decideTogether(memorystore.New(memorystore.Options{}), two)
	t.Run("a request is admitted as often as by the strictest of its limits", func(t *testing.T) {
		for i := range 4 {
			allowed, err := decide(t.Context(), "a")
			if allowed != (i < 2) || err != nil {
				t.Errorf("request %d is allowed: %t, %v", i, allowed, err)
			}
		}
	})
}

func TestCompareLimits(t *testing.T) {
	t.Run("there is a row for each limit and one for all", func(t *testing.T) {
		var out strings.Builder
		if err := compareLimits(t.Context(), &out, 1, 200*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"TokenBucket", "FixedWindow", "SlidingWindowRing", together} {
			if !strings.Contains(out.String(), "\n| "+name+" | ") {
				t.Errorf("there is none of %s in\n%s", name, out.String())
			}
		}
	})
}
