// SPDX-License-Identifier: Apache-2.0

package redisstore_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
	"github.com/weir-dev/weir/internal/limiter/strategy"
	"github.com/weir-dev/weir/internal/redistest"
)

func TestLife(t *testing.T) {
	client := redistest.Start(t).Client(t)
	store := redisstore.New(client)
	for _, algorithm := range strategy.Names() {
		t.Run("no key outlives the life of its limit: "+string(algorithm), func(t *testing.T) {
			for _, window := range []time.Duration{10 * time.Millisecond, 990 * time.Millisecond, 4 * time.Second, time.Minute, time.Hour, 8784 * time.Hour} {
				limit := limiter.Limit{
					Algorithm: algorithm, Requests: 100, Window: window, Burst: 300, MaxDelay: window / 2,
					Calendar: limiter.Calendar{Unit: limiter.Day, TimeZone: "Europe/Berlin"},
				}
				life := strategy.Life(&limit)
				for _, cost := range []int64{1, 30, 69, limit.Capacity()} {
					key := fmt.Sprintf("%s/%s/%d", algorithm, window, cost)
					take(t, store, limiter.Hit{Key: key, Limit: limit, Cost: cost})
					left, err := client.PTTL(t.Context(), key).Result()
					if err != nil {
						t.Fatal(err)
					}
					// It is negative for a key without an end, and one that is gone.
					if left > life || left == -1 {
						t.Errorf("with a window of %s and a cost of %d it has %s to live, more than %s", window, cost, left, life)
					}
				}
			}
		})
	}
}
