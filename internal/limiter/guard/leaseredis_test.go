// SPDX-License-Identifier: Apache-2.0

package guard_test

import (
	"context"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/guard"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
	"github.com/weir-dev/weir/internal/redistest"
)

// TestLeasesInRedis has three replicas of one Redis offer it more than the limit, as fast as they can.
func TestLeasesInRedis(t *testing.T) {
	server := redistest.Start(t)
	for name, l := range map[string]limiter.Limit{
		"a window admits its requests and no more":                   {Algorithm: limiter.FixedWindow, Requests: 60_000, Window: 24 * time.Hour, Lease: 20 * time.Millisecond},
		"a bucket admits its burst, and no more than the rate gives": {Algorithm: limiter.TokenBucket, Requests: 20_000, Window: time.Second, Burst: 20_000, Lease: 20 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			const replicas, offers = 3, 100_000
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			var runs, callers sync.WaitGroup
			var admitted, local atomic.Int64
			h := limiter.Hit{Key: "weir:test:{shop/0}:" + string(l.Algorithm), Limit: l, Cost: 1}
			start := time.Now()
			for range replicas {
				client := server.Client(t)
				leases := guard.NewLeases(guard.DenyCache(redisstore.New(client)))
				runs.Go(func() { leases.Run(ctx) })
				callers.Go(func() {
					for range offers {
						v, err := leases.Take(ctx, []limiter.Hit{h})
						if err != nil {
							t.Error(err)
							return
						}
						if v[0].Allowed {
							admitted.Add(1)
						}
					}
					local.Add(leases.Counts().Local)
				})
			}
			callers.Wait()
			most := l.Capacity()
			if l.Algorithm == limiter.TokenBucket {
				most += int64(time.Since(start).Seconds()*float64(l.Requests)) + 1
			}
			t.Logf("%d of at most %d were admitted; %d of %d decisions were in process", admitted.Load(), most, local.Load(), replicas*offers)
			if got := admitted.Load(); got > most || local.Load() == 0 {
				t.Errorf("%d were admitted, of at most %d, and %d decisions were in process", got, most, local.Load())
			}
			stop()
			runs.Wait()
		})
	}
}
