// SPDX-License-Identifier: Apache-2.0

package limiter_test

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weir-dev/weir/internal/limiter"
)

// visit is a request of a client, and what became of it.
type visit struct {
	who       string
	at, stays time.Duration
	// patience is how long the client waits for its turn. Zero is for ever.
	patience time.Duration
	hits     []limiter.Hit
	trips    map[limiter.Algorithm]trip

	decision limiter.Decision
	// until is when the client leaves.
	until time.Time
}

// limits are those that a visit can hit. They are small, so that all of them refuse.
var limits = map[string]limiter.Limit{
	"f":  {Algorithm: limiter.FixedWindow, Requests: 25, Window: time.Hour},
	"q1": {Algorithm: limiter.LeakyBucketQueue, Requests: 100, Window: time.Second, MaxDelay: 60 * time.Millisecond, MaxQueue: 5},
	"q2": {Algorithm: limiter.LeakyBucketQueue, Requests: 500, Window: time.Second, MaxDelay: 20 * time.Millisecond, MaxQueue: 15},
	"c1": {Algorithm: limiter.Concurrency, Requests: 3, Window: 60 * time.Millisecond},
	"c2": {Algorithm: limiter.Concurrency, Requests: 8, Window: 200 * time.Millisecond},
}

// draw draws visits of so short times, in whole milliseconds, that much happens at the same moment.
func draw(rt *rapid.T) []*visit {
	all := make([]*visit, rapid.IntRange(1, 40).Draw(rt, "visits"))
	for i := range all {
		v := &visit{who: fmt.Sprint(i), at: ms(rt, 25), stays: ms(rt, 150), trips: map[limiter.Algorithm]trip{}}
		if oneIn(rt, 4) {
			v.patience = 1 + ms(rt, 60)
		}
		for _, key := range rapid.Permutation([]string{"f", "q1", "q2", "c1", "c2"}).Draw(rt, "limits")[:rapid.IntRange(1, 4).Draw(rt, "number")] {
			h := limiter.Hit{Key: key, Limit: limits[key], Cost: 1, ID: limiter.LimitID{Policy: v.who, Limit: key}}
			h.Shadow = oneIn(rt, 6)
			h.Cost -= count(oneIn(rt, 8))
			if oneIn(rt, 3) {
				h.OnFailure = limiter.FailClosed
			}
			v.hits = append(v.hits, h)
			v.trips[h.Limit.Algorithm] = trip{There: ms(rt, 3), Back: ms(rt, 8), LostThere: oneIn(rt, 16), LostAfter: oneIn(rt, 16)}
		}
		all[i] = v
	}
	return all
}

func ms(rt *rapid.T, most int) time.Duration {
	return time.Duration(rapid.IntRange(0, most).Draw(rt, "ms")) * time.Millisecond
}

func oneIn(rt *rapid.T, n int) bool { return rapid.IntRange(1, n).Draw(rt, "one in") == n }

// byVisit is a recorder that knows whose the outcomes are.
type byVisit struct {
	mu       sync.Mutex
	outcomes map[string][]limiter.Outcome
}

func (b *byVisit) Record(id limiter.LimitID, outcome limiter.Outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.outcomes[id.Policy] = append(b.outcomes[id.Policy], outcome)
}

func TestTurnsAndPermits(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		visits := draw(rt)
		store := &model{deaf: oneIn(rt, 8), trips: map[string]map[limiter.Algorithm]trip{}, told: map[string][]told{}}
		for _, v := range visits {
			store.trips[v.who] = v.trips
		}
		recorder := &byVisit{outcomes: map[string][]limiter.Outcome{}}
		rapid.SyncTest(rt, func(rt *rapid.T) {
			engine := limiter.NewEngine(store, recorder)
			play(rt.Context(), engine, visits)
			if n, _ := engine.Waiting(); n != 0 {
				rt.Errorf("%d requests are still held", n)
			}
		})
		checkRefunds(rt, visits, store)
		checkOutcomes(rt, visits, recorder)
		checkTurns(rt, visits, store)
	})
}

// play lets all visits happen.
func play(ctx context.Context, engine *limiter.Engine, visits []*visit) {
	ctx, stop := context.WithCancel(ctx)
	var renewing, visiting sync.WaitGroup
	renewing.Go(func() { engine.Run(ctx) })
	for _, v := range visits {
		visiting.Go(func() {
			time.Sleep(v.at)
			ctx, leave := context.WithCancel(ctx)
			defer leave()
			if v.patience > 0 {
				v.until = time.Now().Add(v.patience)
				time.AfterFunc(v.patience, leave)
			}
			v.decision = engine.Decide(ctx, v.hits)
			defer v.decision.Release()
			defer v.decision.Release()
			if v.decision.Allowed {
				time.Sleep(v.stays)
			}
		})
	}
	visiting.Wait()
	stop()
	renewing.Wait()
}

// checkRefunds wants each permit given back once, and in time, and else exactly what was charged for requests that
// were not admitted in the end.
func checkRefunds(rt *rapid.T, visits []*visit, store *model) {
	admitted := map[string]bool{}
	for _, v := range visits {
		admitted[v.who] = v.decision.Allowed
	}
	for _, c := range store.book {
		want := 1
		if c.unknown || admitted[c.Hit.ID.Policy] && c.Hit.Limit.Algorithm != limiter.Concurrency {
			want = 0
		}
		if c.refunds != want {
			rt.Errorf("the charge of %s for %s was refunded %d times, not %d", c.Hit.Key, c.Hit.ID.Policy, c.refunds, want)
		}
		if c.late && !store.deaf {
			rt.Errorf("the permit of %s for %s expired under way", c.Hit.Key, c.Hit.ID.Policy)
		}
	}
}

// checkOutcomes wants one outcome of each limit of who was admitted, none of who has left, and else refusals only.
func checkOutcomes(rt *rapid.T, visits []*visit, recorder *byVisit) {
	for _, v := range visits {
		got := recorder.outcomes[v.who]
		admitted := 0
		for _, o := range got {
			if o == limiter.Allowed || o == limiter.ShadowDenied || o == limiter.FailedOpen {
				admitted++
			}
		}
		d := v.decision
		ok := d.Allowed && admitted == len(v.hits) && len(got) == admitted ||
			d.Left && d.By == nil && len(got) == 0 ||
			d.By != nil && len(got) > 0 && admitted == 0
		if !ok {
			rt.Errorf("the outcomes of %s are %v, and the decision %+v", v.who, got, d)
		}
	}
}

// place is a place in a line.
type place struct {
	*visit
	key  string
	slot int64
	// joined is when the verdict was there, due when it said that the slot is, and gone when Decide went on.
	joined, due, gone time.Time
}

// checkTurns wants that nobody goes on too early, nor without need too late, nor ahead of an earlier slot, and that
// whoever leaves does so at once.
func checkTurns(rt *rapid.T, visits []*visit, store *model) {
	lines := map[string][]place{}
	for _, v := range visits {
		if p, ok := store.placeOf(v); ok {
			lines[p.key] = append(lines[p.key], p)
		}
	}
	for _, line := range lines {
		for _, p := range line {
			checkPlace(rt, p, line)
		}
	}
}

// placeOf gives the place of a visit that got a slot.
func (m *model) placeOf(v *visit) (place, bool) {
	p := place{visit: v}
	if v.decision.By != nil && v.decision.By.Limit.Algorithm != limiter.Concurrency {
		return p, false
	}
	for _, t := range m.told[v.who] {
		due := t.at.Add(t.verdict.Wait)
		if t.hit.Limit.Algorithm == limiter.LeakyBucketQueue && t.hit.Cost > 0 && !t.hit.Shadow && (p.key == "" || due.After(p.due)) {
			p.key, p.slot, p.joined, p.due = t.hit.Key, t.verdict.Receipt, t.at, due
		}
	}
	p.gone = p.joined.Add(v.decision.Waited)
	return p, p.key != ""
}

func checkPlace(rt *rapid.T, p place, line []place) {
	if p.decision.Left {
		want := p.until
		if want.Before(p.joined) {
			want = p.joined
		}
		if !p.gone.Equal(want) {
			rt.Errorf("%s left %s after it could", p.who, p.gone.Sub(want))
		}
		return
	}
	if p.gone.Before(p.due) {
		rt.Errorf("%s went on %s too early", p.who, p.due.Sub(p.gone))
	}
	if p.patience > 0 && p.until.Before(p.gone) {
		rt.Errorf("%s went on though it had left", p.who)
	}
	latest := p.due
	for _, other := range line {
		if other.slot > p.slot || other.visit == p.visit {
			continue
		}
		if other.due.After(latest) {
			latest = other.due
		}
		if !other.decision.Left && other.joined.Before(p.gone) && other.gone.After(p.gone) {
			rt.Errorf("%s overtook %s", p.who, other.who)
		}
	}
	if p.gone.After(latest) {
		rt.Errorf("%s went on %s too late", p.who, p.gone.Sub(latest))
	}
}
