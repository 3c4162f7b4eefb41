// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
)

// distant is a store that answers a while after it was asked.
type distant struct {
	limiter.Store
	trip time.Duration
}

func (d distant) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	time.Sleep(d.trip)
	return d.Store.Take(ctx, hits)
}

// BenchmarkTake compares leases of a store that is 0.3 ms away with counters in process, under 64 callers of ten keys.
// They keep all cores busy, so that each of them, and the next lease, wait for their turn.
func BenchmarkTake(b *testing.B) {
	l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 1e9, Window: time.Second, Burst: 1e9, Lease: 10 * time.Millisecond}
	b.Run("in process", func(b *testing.B) { takeInParallel(b, memorystore.New(memorystore.Options{}), l) })
	b.Run("leased", func(b *testing.B) {
		leases := NewLeases(DenyCache(distant{memorystore.New(memorystore.Options{}), 300 * time.Microsecond}))
		ctx, stop := context.WithCancel(b.Context())
		var runs sync.WaitGroup
		runs.Go(func() { leases.Run(ctx) })
		defer runs.Wait()
		defer stop()
		takeInParallel(b, leases, l)
		c := leases.Counts()
		b.ReportMetric(float64(c.Stored)/float64(c.Local+c.Stored), "stored/op")
	})
}

// takeInParallel has 64 callers take, and reports percentiles of how long that takes.
func takeInParallel(b *testing.B, store limiter.Store, l limiter.Limit) {
	const callers, keys = 64, 10
	took := make([][]time.Duration, callers)
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			random := rand.New(rand.NewPCG(uint64(i), 0))
			hits := []limiter.Hit{{Limit: l, Cost: 1}}
			for range b.N/callers + 1 {
				hits[0].Key = "weir:test:{shop/0}:" + strconv.Itoa(random.IntN(keys))
				begun := time.Now()
				if _, err := store.Take(b.Context(), hits); err != nil {
					b.Error(err)
					return
				}
				took[i] = append(took[i], time.Since(begun))
			}
		})
	}
	all.Wait()
	sorted := slices.Concat(took...)
	slices.Sort(sorted)
	b.ReportMetric(float64(sorted[len(sorted)/2])/1e3, "p50-us")
	b.ReportMetric(float64(sorted[len(sorted)*99/100])/1e3, "p99-us")
	b.ReportMetric(float64(sorted[len(sorted)*999/1000])/1e3, "p999-us")
}
