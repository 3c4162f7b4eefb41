// SPDX-License-Identifier: Apache-2.0

package redisstore_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
	"github.com/weir-dev/weir/internal/limiter/storetest"
	"github.com/weir-dev/weir/internal/limiter/strategy"
	"github.com/weir-dev/weir/internal/redistest"
)

func TestMemory(t *testing.T) {
	client := redistest.Start(t).Client(t)
	store, ctx := redisstore.NewOf(client, onClock), t.Context()
	const key = "weir:0f8fad5b-d9cb-469f-a165-70867728950e:{shop/255}:XYPZdkfqeOZH4NLchKEyhg"
	most := map[limiter.Algorithm]int64{limiter.SlidingWindowRing: 512}
	for _, algorithm := range strategy.Names() {
		if algorithm == limiter.SlidingWindowLog || algorithm == limiter.Concurrency {
			continue // They take as much as is in them.
		}
		want := int64(256)
		if n, ok := most[algorithm]; ok {
			want = n
		}
		t.Run(fmt.Sprint("a counter of ", algorithm, " takes at most ", want, " bytes of Redis"), func(t *testing.T) {
			limit := limiter.Limit{
				Algorithm: algorithm, Requests: 1_000_000_000, Window: time.Hour, Burst: 1_000_000_000,
				Calendar: limiter.Calendar{Unit: limiter.Day, TimeZone: "Europe/Berlin"},
			}
			// As many steps as a ring has slots: after that it can't grow.
			for step := range 61 {
				client.Set(ctx, "clock", storetest.Epoch.Add(time.Duration(step)*time.Minute).UnixMicro(), 0)
				take(t, store, limiter.Hit{Key: key, Limit: limit, Cost: 10_000_000})
			}
			client.Expire(ctx, key, time.Hour)
			got, err := client.MemoryUsage(ctx, key).Result()
			if err != nil {
				t.Fatal(err)
			}
			if got > want {
				t.Errorf("it takes %d bytes", got)
			}
		})
	}
	t.Run("a queue with as many holes as it can have takes at most 1,500 bytes of Redis", func(t *testing.T) {
		limit := limiter.Limit{Algorithm: limiter.LeakyBucketQueue, Requests: 1, Window: time.Second, MaxDelay: time.Hour}
		hit := limiter.Hit{Key: key, Limit: limit, Cost: 1}
		client.Del(ctx, key)
		var charges []limiter.Charge
		for range 200 {
			charges = append(charges, limiter.Charge{Hit: hit, Receipt: take(t, store, hit).Receipt})
		}
		if err := store.Refund(ctx, charges[:150]); err != nil {
			t.Fatal(err)
		}
		client.Expire(ctx, key, time.Hour)
		got, err := client.MemoryUsage(ctx, key).Result()
		if err != nil {
			t.Fatal(err)
		}
		if got < 1024 || got > 1500 {
			t.Errorf("it takes %d bytes", got)
		}
	})
}

// TestLogMemory holds for logs that were full before, so that some of it has left.
func TestLogMemory(t *testing.T) {
	client := redistest.Start(t).Client(t)
	store, ctx := redisstore.NewOf(client, onClock), t.Context()
	for _, requests := range []int64{1, 10, 100, 1000, 10_000} {
		t.Run(fmt.Sprint("a log of ", requests, " takes at most 11 bytes of Redis for each, and 256"), func(t *testing.T) {
			key := "weir:0f8fad5b-d9cb-469f-a165-70867728950e:{shop/255}:XYPZdkfqeOZH4NLchKEyhg"
			client.Del(ctx, key)
			hit := limiter.Hit{Key: key, Limit: limiter.Limit{Algorithm: limiter.SlidingWindowLog, Requests: requests, Window: time.Hour}, Cost: 1}
			for step := range 2 * requests {
				client.Set(ctx, "clock", storetest.Epoch.UnixMicro()+step*hit.Limit.Window.Microseconds()/requests, 0)
				if v := take(t, store, hit); !v.Allowed {
					t.Fatalf("request %d got %+v", step, v)
				}
			}
			client.Expire(ctx, key, time.Hour)
			got, err := client.MemoryUsage(ctx, key, 0).Result()
			if err != nil {
				t.Fatal(err)
			}
			if want := 11*requests + 256; got > want {
				t.Errorf("it takes %d bytes, more than %d", got, want)
			}
		})
	}
}
