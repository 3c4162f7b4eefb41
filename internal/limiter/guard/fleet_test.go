// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
)

// fleet is replicas that lease from one counter, in virtual time.
type fleet struct {
	counters *memorystore.Store
	replicas []*replica
	// admissions are in order of time.
	mu         sync.Mutex
	admissions []admission
	// asked is how often the store was.
	asked atomic.Int64
	// all is what is under way.
	all sync.WaitGroup
}

// admission is what was admitted at a time, in microseconds since the Unix epoch.
type admission struct{ at, cost int64 }

// replica is one of a fleet.
type replica struct {
	*Leases
	fleet *fleet
	hit   limiter.Hit
	// rate is its demand, in requests a second.
	rate float64
	// down says that it can't reach the store any more.
	down                     atomic.Bool
	offered, admitted, local atomic.Int64
}

func newFleet(n int, l limiter.Limit) *fleet {
	f := &fleet{counters: memorystore.New(memorystore.Options{Now: time.Now})}
	for range n {
		f.replicas = append(f.replicas, f.newReplica(l))
	}
	return f
}

func (f *fleet) newReplica(l limiter.Limit) *replica {
	r := &replica{fleet: f, hit: limiter.Hit{Key: "weir:test:{shop/0}:hot", Limit: l, Cost: 1}}
	r.Leases = NewLeases(DenyCache(remote{r}))
	return r
}

// remote is the store that is a quarter of a millisecond away from a replica.
type remote struct{ replica *replica }

const halfWay = 250 * time.Microsecond

var errDown = errors.New("the store can't be reached")

func (r remote) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	f := r.replica.fleet
	f.asked.Add(1)
	if r.replica.down.Load() {
		return nil, errDown
	}
	time.Sleep(halfWay)
	verdicts, err := f.counters.Take(ctx, hits)
	if err == nil && verdicts[0].Allowed && !hits[0].UpTo && hits[0].Key == r.replica.hit.Key {
		f.admit(hits[0].Cost)
	}
	time.Sleep(halfWay)
	return verdicts, err
}

func (r remote) Refund(ctx context.Context, charges []limiter.Charge) error {
	if r.replica.down.Load() {
		return errDown
	}
	time.Sleep(halfWay)
	return r.replica.fleet.counters.Refund(ctx, charges)
}

func (r remote) Renew(ctx context.Context, charges []limiter.Charge) error {
	return r.replica.fleet.counters.Renew(ctx, charges)
}

func (f *fleet) admit(cost int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := time.Now().UnixMicro()
	if last := len(f.admissions) - 1; last >= 0 && f.admissions[last].at == now {
		f.admissions[last].cost += cost
		return
	}
	f.admissions = append(f.admissions, admission{now, cost})
}

// run has the replicas run while play does, and waits for all that is under way then.
func (f *fleet) run(ctx context.Context, play func(ctx context.Context)) {
	ctx, stop := context.WithCancel(ctx)
	for _, r := range f.replicas {
		f.all.Go(func() { r.Run(ctx) })
	}
	play(ctx)
	stop()
	f.all.Wait()
	synctest.Wait()
}

// offer offers each replica its demand for so long, as Poisson has it.
func (f *fleet) offer(ctx context.Context, random *rand.Rand, length time.Duration) {
	const step = 500 * time.Microsecond
	for end := time.Now().Add(length); time.Now().Before(end); time.Sleep(step) {
		for _, r := range f.replicas {
			for range poisson(random, r.rate*step.Seconds()) {
				r.ask(ctx)
			}
		}
	}
}

// ask does what Leases.Take does, but doesn't wait where that asks the store.
func (r *replica) ask(ctx context.Context) {
	r.offered.Add(1)
	h := r.hit
	v, answer := r.decide(&h)
	if answer == unknown {
		r.fleet.all.Go(func() {
			if v, err := r.store.Take(context.WithoutCancel(ctx), []limiter.Hit{h}); err == nil && v[0].Allowed {
				r.admitted.Add(1)
			}
		})
		return
	}
	r.local.Add(1)
	if v.Allowed {
		r.admitted.Add(1)
		r.fleet.admit(1)
	}
}

func poisson(random *rand.Rand, mean float64) int {
	if mean > 30 {
		return max(0, int(math.Round(mean+math.Sqrt(mean)*random.NormFloat64())))
	}
	n, p := 0, random.Float64()
	for limit := math.Exp(-mean); p > limit; n++ {
		p *= random.Float64()
	}
	return n
}

// burst gives the most that any interval admits above a rate, in requests a second.
func (f *fleet) burst(rate float64) float64 {
	var sum, low, top float64
	for _, a := range f.admissions {
		given := rate * float64(a.at-f.admissions[0].at) / 1e6
		low = min(low, sum-given)
		sum += float64(a.cost)
		top = max(top, sum-given-low)
	}
	return top
}

// inWindow gives the most that is admitted in any window on the clock.
func (f *fleet) inWindow(window time.Duration) int64 {
	most, sums := int64(0), map[int64]int64{}
	for _, a := range f.admissions {
		id := a.at / window.Microseconds()
		sums[id] += a.cost
		most = max(most, sums[id])
	}
	return most
}

// inAny gives the most that is admitted in any time as long as a window.
func (f *fleet) inAny(window time.Duration) int64 {
	var sum, most int64
	first := 0
	for _, a := range f.admissions {
		for sum += a.cost; f.admissions[first].at <= a.at-window.Microseconds(); first++ {
			sum -= f.admissions[first].cost
		}
		most = max(most, sum)
	}
	return most
}
