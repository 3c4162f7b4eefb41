// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// result is what became of a fleet's demand.
type result struct {
	// burst is the most that any interval admits above the rate, as a part of the limit's burst.
	burst float64
	// used is what was admitted as a part of what the rate allows.
	used float64
	// admitted is the part of the demand that was, and local the part that was decided in process.
	admitted, local float64
	// least and most are the parts that the replicas of at least 50 requests got, as parts of what all did.
	least, most float64
	// asked is how many round trips there were for a decision.
	asked float64
}

// forget starts to count anew, but for what was admitted when.
func (f *fleet) forget() {
	f.asked.Store(0)
	for _, r := range f.replicas {
		r.offered.Store(0)
		r.admitted.Store(0)
		r.local.Store(0)
	}
}

func (f *fleet) result(l limiter.Limit, length time.Duration) result {
	var offered, admitted, local int64
	for _, r := range f.replicas {
		offered, admitted, local = offered+r.offered.Load(), admitted+r.admitted.Load(), local+r.local.Load()
	}
	rate := float64(l.Requests) / l.Window.Seconds()
	o := result{
		burst:    f.burst(rate) / float64(l.Burst),
		used:     float64(admitted) / rate / length.Seconds(),
		admitted: float64(admitted) / float64(offered),
		local:    float64(local) / float64(offered),
		asked:    float64(f.asked.Load()) / float64(offered),
		least:    math.Inf(1),
	}
	for _, r := range f.replicas {
		if n := r.offered.Load(); n >= 50 {
			part := float64(r.admitted.Load()) / float64(n) / o.admitted
			o.least, o.most = min(o.least, part), max(o.most, part)
		}
	}
	return o
}

// zipf has the demand of the nth replica be an nth of the first one's.
func (f *fleet) zipf(demand float64) {
	harmonic := 0.0
	for i := range f.replicas {
		harmonic += 1 / float64(i+1)
	}
	for i, r := range f.replicas {
		r.rate = demand / harmonic / float64(i+1)
	}
}

// TestLeasesOfAFleet is a simulation in virtual time, in which all but the store and the network is what enforcers
// run.
func TestLeasesOfAFleet(t *testing.T) {
	const replicas, warm = 100, 1200 * time.Millisecond
	l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 50_000, Window: time.Second, Burst: 50_000, Lease: 100 * time.Millisecond}
	for _, test := range []struct {
		load   float64
		length time.Duration
		check  func(r result) bool
	}{
		{0.8, 2 * time.Second, func(r result) bool { return r.admitted == 1 && r.local >= 0.99 }},
		{2, 4 * time.Second, func(r result) bool { return r.used >= 0.95 && r.least >= 0.85 && r.most <= 1.15 }},
		{10, time.Second, func(r result) bool { return r.used >= 0.95 && r.least >= 0.8 && r.most <= 1.2 }},
	} {
		t.Run(fmt.Sprintf("100 replicas with %g times the demand that the limit allows get it as it is stated", test.load), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				f := newFleet(replicas, l)
				f.zipf(test.load * float64(l.Requests))
				random := rand.New(rand.NewPCG(1, uint64(test.load)))
				f.run(t.Context(), func(ctx context.Context) {
					f.offer(ctx, random, warm)
					f.forget()
					f.offer(ctx, random, test.length)
				})
				r := f.result(l, test.length)
				t.Logf("| %g | %.3f | %.3f | %.3f | %.4f | %.2f to %.2f | %.4f |",
					test.load, r.burst, r.used, r.admitted, r.local, r.least, r.most, r.asked)
				if r.burst > 1+1e-6 || !test.check(r) {
					t.Errorf("got %+v", r)
				}
			})
		})
	}
}

// A replica whose demand comes in bursts leases for the next one, and leaves enough for the others.
func TestLeasesOfAFleetWithBursts(t *testing.T) {
	const replicas, turns, turn, load = 20, 60, 50 * time.Millisecond, 0.6
	l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 50_000, Window: time.Second, Burst: 50_000, Lease: 100 * time.Millisecond}
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(replicas, l)
		random := rand.New(rand.NewPCG(1, 1))
		busy := 4 * load * float64(l.Requests) / replicas
		f.run(t.Context(), func(ctx context.Context) {
			for i := range turns {
				for _, r := range f.replicas {
					r.rate = busy * float64(random.IntN(4)/3) // One turn of four.
				}
				if i == turns/4 {
					f.forget()
				}
				f.offer(ctx, random, turn)
			}
		})
		r := f.result(l, turns*3/4*turn)
		t.Logf("%.3f of the demand is admitted, %.4f decided in process, with %.4f round trips for each", r.admitted, r.local, r.asked)
		if r.burst > 1+1e-6 || r.admitted < 1 || r.local < 0.94 {
			t.Errorf("got %+v", r)
		}
	})
}
