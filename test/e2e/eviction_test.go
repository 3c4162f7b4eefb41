// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/test/playground"
)

// TestR20TheStoreEvictsPolicies is what of R20 concerns policies.
func TestR20TheStoreEvictsPolicies(t *testing.T) {
	const name, limit = "evicted", 50
	apply(t, name, `{selector: {}, limits: [{name: all, strategy: {fixedWindow: {requests: 50, window: 24h}}}]}`)
	awaitReady(t, name)
	client := weir.Redis.Client(t)
	// While memory is short, this Redis is not for other tests.
	t.Cleanup(func() { configure(t, client, "maxmemory", "0", "maxmemory-policy", "noeviction") })

	configure(t, client, "maxmemory-policy", "allkeys-lru")
	began := time.Now()
	eventually(t, patience, "StoreReady warns", func() bool { return storeReady(t, name) == v1alpha1.ReasonEvicts })
	warned := time.Since(began)
	awaitReady(t, name)

	var dropped, others atomic.Int64
	stop := background(t, func(ctx context.Context) {
		for _, s := range weir.Sidecars {
			r, err := playground.Get(ctx, s.Admin+"/debug/snapshot", "")
			if err == nil && !strings.Contains(r.Body, name) {
				dropped.Add(1)
			}
			r, err = playground.Get(ctx, s.URL, "")
			if err == nil && r.Status != http.StatusOK && r.Status != http.StatusTooManyRequests {
				others.Add(1)
			}
		}
	})
	evict(t, client, "weir:playground:{config}:"+playground.Namespace)
	configure(t, client, "maxmemory", "0", "maxmemory-policy", "noeviction")
	began = time.Now()
	eventually(t, patience, "the manager publishes again", func() bool { return stored(t, name) == limit })
	republished := time.Since(began)
	eventually(t, patience, "StoreReady is as before", func() bool { return storeReady(t, name) == v1alpha1.ReasonReachable })
	stop()
	tell(t, "R20", "a warning within 10 s, 0 policies dropped, 0 answers 5xx, published again within 5 s",
		"%s, %d, %d, %s", seconds(warned), dropped.Load(), others.Load(), seconds(republished))
	if dropped.Load() > 0 || others.Load() > 0 {
		t.Errorf("%d times a sidecar had no policy, %d answers are neither 200 nor 429", dropped.Load(), others.Load())
	}
	awaitReady(t, name)
}

// configure sets parameters of Redis, each followed by its value.
func configure(t *testing.T, client *redis.Client, pairs ...string) {
	t.Helper()
	for i := 0; i < len(pairs); i += 2 {
		if err := client.ConfigSet(context.WithoutCancel(t.Context()), pairs[i], pairs[i+1]).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// evict fills Redis, with room for little more than it holds, until a key is gone. It leaves nothing of its own.
func evict(t *testing.T, client *redis.Client, key string) {
	t.Helper()
	used, err := client.Info(t.Context(), "memory").Result()
	if err != nil {
		t.Fatal(err)
	}
	_, used, _ = strings.Cut(used, "used_memory:")
	var bytes int64
	if _, err := fmt.Sscan(used, &bytes); err != nil {
		t.Fatal(err)
	}
	configure(t, client, "maxmemory", fmt.Sprint(bytes+4<<20))
	junk := strings.Repeat("x", 8<<10)
	eventually(t, patience, key+" is evicted", func() bool {
		var left *redis.IntCmd
		_, err := client.Pipelined(t.Context(), func(p redis.Pipeliner) error {
			for i := range 2000 {
				p.Set(t.Context(), fmt.Sprint("junk:", i), junk, 10*time.Second)
			}
			left = p.Exists(t.Context(), key)
			return nil
		})
		return err == nil && left.Val() == 0
	})
	for i := range 2000 {
		if err := client.Unlink(t.Context(), fmt.Sprint("junk:", i)).Err(); err != nil {
			t.Fatal(err)
		}
	}
}
