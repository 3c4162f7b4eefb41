// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// seeds are how many fleets are tried of each algorithm.
const seeds = 20

// trouble has a few replicas go through calms, in which they hold leases of a counter that has plenty, and storms that
// come out of them, through edits, crashes and stores that are away.
func (f *fleet) trouble(ctx context.Context, random *rand.Rand, edits []limiter.Limit) {
	rate := float64(edits[0].Requests) / edits[0].Window.Seconds() / float64(len(f.replicas))
	for range 6 {
		f.change(ctx, random, edits, rate, []float64{0, 0.3, 0.6, 0.9})
		f.offer(ctx, random, time.Duration(400+random.IntN(400))*time.Millisecond)
		f.change(ctx, random, edits, rate, []float64{1, 3, 12})
		f.offer(ctx, random, time.Duration(random.IntN(200))*time.Millisecond)
	}
}

func (f *fleet) change(ctx context.Context, random *rand.Rand, edits []limiter.Limit, rate float64, loads []float64) {
	for i, r := range f.replicas {
		r.rate = rate * loads[random.IntN(len(loads))]
		r.hit.Limit = edits[random.IntN(len(edits))]
		r.down.Store(random.IntN(10) == 0)
		if random.IntN(10) == 0 {
			f.crash(ctx, i)
		}
	}
}

// crash replaces a replica by another one, which knows nothing of what the first one holds.
func (f *fleet) crash(ctx context.Context, i int) {
	old := f.replicas[i]
	old.down.Store(true)
	r := f.newReplica(old.hit.Limit)
	r.rate = old.rate
	f.replicas[i] = r
	f.all.Go(func() { r.Run(ctx) })
}

func TestLeasesKeepTheBoundOfAFleet(t *testing.T) {
	second := func(a limiter.Algorithm) limiter.Limit {
		return limiter.Limit{Algorithm: a, Requests: 2000, Window: time.Second, Burst: 600, Lease: 100 * time.Millisecond}
	}
	for _, test := range []struct {
		algorithm limiter.Algorithm
		// stated is the most that a fleet may admit, in requests, and admits gives the most that it did.
		stated float64
		admits func(f *fleet) float64
	}{
		{limiter.TokenBucket, 600, func(f *fleet) float64 { return f.burst(2000) }},
		{limiter.FixedWindow, 2000, func(f *fleet) float64 { return float64(f.inWindow(time.Second)) }},
		{limiter.SlidingWindowRing, 2000, func(f *fleet) float64 { return float64(f.inAny(time.Second)) }},
		{limiter.SlidingWindowApproximate, 2 * 2000, func(f *fleet) float64 { return float64(f.inAny(time.Second)) }},
	} {
		t.Run(string(test.algorithm)+" admits no more than it states through crashes, outages and changes of demand", func(t *testing.T) {
			worst := 0.0
			for seed := range uint64(seeds) {
				most := test.admits(play(t, seed, second(test.algorithm)))
				if most > test.stated+1e-5 {
					t.Errorf("seed %d: %g, not %g", seed, most, test.stated)
				}
				worst = max(worst, most)
			}
			t.Logf("stated %g, worst seen %.1f", test.stated, worst)
		})
	}
	t.Run("an edit lets no more through than what the larger limit gains beside in the term of a lease", func(t *testing.T) {
		const term = 0.15 // seconds, the larger of the two
		small, large := second(limiter.TokenBucket), second(limiter.TokenBucket)
		small.Requests, large.Burst = 1000, 750
		const stated = 750 + term*(2000-1000)
		worst := 0.0
		for seed := range uint64(seeds) {
			most := play(t, seed, small, large).burst(2000)
			if most > stated+1e-5 {
				t.Errorf("seed %d: %g, not %g", seed, most, stated)
			}
			worst = max(worst, most)
		}
		t.Logf("stated %g, worst seen %.1f", stated, worst)
	})
}

// play gives a fleet that has been through trouble.
func play(t *testing.T, seed uint64, edits ...limiter.Limit) *fleet {
	var f *fleet
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed, seed))
		f = newFleet(2+random.IntN(6), edits[0])
		f.run(t.Context(), func(ctx context.Context) { f.trouble(ctx, random, edits) })
		if len(f.admissions) == 0 {
			t.Errorf("seed %d admits nothing", seed)
		}
	})
	return f
}
