// SPDX-License-Identifier: Apache-2.0

package limiter_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
)

func failsLocal(h *limiter.Hit) { h.OnFailure = limiter.FailLocal }

func perReplica(h *limiter.Hit) { h.Distribution = limiter.PerReplica }

func TestWithoutTheStore(t *testing.T) {
	var (
		open   = hit("open")
		closed = with(hit("closed"), func(h *limiter.Hit) { h.OnFailure = limiter.FailClosed })
		local  = with(hit("local"), failsLocal)
		local2 = with(hit("local2"), failsLocal)
		alone  = with(closed, perReplica)
		broken = with(hit("local"), func(h *limiter.Hit) { failsLocal(h); h.Cost = -1 })
	)
	yes, no := limiter.Verdict{Allowed: true, Remaining: 4}, limiter.Verdict{RetryAfter: time.Minute}
	tests := map[string]struct {
		hits     []limiter.Hit
		own      limiter.Store
		want     limiter.Decision
		outcomes outcomes
	}{
		"a local limit decides by the replica's own counters": {
			hits:     []limiter.Hit{local},
			own:      answering(yes),
			want:     limiter.Decision{Allowed: true, Hits: []limiter.Hit{local}, Verdicts: []limiter.Verdict{yes}, Err: errDown},
			outcomes: outcomes{"local": {limiter.LocalAllowed}},
		},
		"a local limit that refuses is an answer": {
			hits: []limiter.Hit{local},
			own:  answering(no),
			want: limiter.Decision{
				Hits: []limiter.Hit{local}, Verdicts: []limiter.Verdict{no}, By: &local, RetryAfter: time.Minute,
			},
			outcomes: outcomes{"local": {limiter.LocalDenied}},
		},
		"a closed limit refuses whatever a local one would say": {
			hits:     []limiter.Hit{local, closed, open},
			own:      storeFunc(unasked),
			want:     limiter.Decision{By: &closed, Err: errDown},
			outcomes: outcomes{"closed": {limiter.FailedClosed}},
		},
		"an open limit lets through what a local one admits": {
			hits:     []limiter.Hit{open, local},
			own:      answering(yes),
			want:     limiter.Decision{Allowed: true, Hits: []limiter.Hit{local}, Verdicts: []limiter.Verdict{yes}, Err: errDown},
			outcomes: outcomes{"open": {limiter.FailedOpen}, "local": {limiter.LocalAllowed}},
		},
		"an open limit saves nothing that a local one refuses": {
			hits:     []limiter.Hit{open, local},
			own:      answering(no),
			want:     limiter.Decision{Hits: []limiter.Hit{local}, Verdicts: []limiter.Verdict{no}, By: &local, RetryAfter: time.Minute},
			outcomes: outcomes{"local": {limiter.LocalDenied}},
		},
		"local limits decide together": {
			hits:     []limiter.Hit{local, local2},
			own:      answering(yes, no),
			want:     limiter.Decision{Hits: []limiter.Hit{local, local2}, Verdicts: []limiter.Verdict{yes, no}, By: &local2, RetryAfter: time.Minute},
			outcomes: outcomes{"local2": {limiter.LocalDenied}},
		},
		"a local limit in the shadow refuses nobody": {
			hits:     []limiter.Hit{asShadow(local)},
			own:      answering(no),
			want:     limiter.Decision{Allowed: true, Hits: []limiter.Hit{asShadow(local)}, Verdicts: []limiter.Verdict{no}, Err: errDown},
			outcomes: outcomes{"local": {limiter.ShadowDenied}},
		},
		"a limit that each replica counts by itself needs no store, and never fails": {
			hits:     []limiter.Hit{alone, open},
			own:      answering(yes),
			want:     limiter.Decision{Allowed: true, Hits: []limiter.Hit{alone}, Verdicts: []limiter.Verdict{yes}, Err: errDown},
			outcomes: outcomes{"closed": {limiter.Allowed}, "open": {limiter.FailedOpen}},
		},
		"a limit that each replica counts by itself refuses as ever": {
			hits:     []limiter.Hit{alone, open},
			own:      answering(no),
			want:     limiter.Decision{Hits: []limiter.Hit{alone}, Verdicts: []limiter.Verdict{no}, By: &alone, RetryAfter: time.Minute},
			outcomes: outcomes{"closed": {limiter.Denied}},
		},
		"what no counter can decide is let through": {
			hits:     []limiter.Hit{broken},
			own:      memorystore.New(memorystore.Options{}),
			want:     limiter.Decision{Allowed: true, Err: errDown},
			outcomes: outcomes{"local": {limiter.FailedOpen}},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			told := outcomes{}
			got := limiter.NewEngineWithFallback(storeFunc(failing), test.own, told).Decide(t.Context(), test.hits)
			if diff := cmp.Diff(test.want, got, decisions...); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.outcomes, told); diff != "" {
				t.Errorf("outcomes (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("with the store there nobody asks the replica's own counters", func(t *testing.T) {
		if d := limiter.NewEngineWithFallback(answering(yes), storeFunc(unasked), outcomes{}).Decide(t.Context(), []limiter.Hit{local}); !d.Allowed || d.Err != nil {
			t.Errorf("got %+v", d)
		}
	})
}

func TestTurnsWithoutTheStore(t *testing.T) {
	newEngine := func(t *testing.T, store limiter.Store) *limiter.Engine {
		t.Helper()
		e := limiter.NewEngineWithFallback(store, memorystore.New(memorystore.Options{}), nobody{})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { defer close(ended); e.Run(ctx) }()
		t.Cleanup(func() { stop(); <-ended })
		return e
	}
	queued := func(h *limiter.Hit) {
		failsLocal(h)
		h.Limit = limiter.Limit{Algorithm: limiter.LeakyBucketQueue, Requests: 1, Window: time.Second, MaxDelay: time.Minute}
	}
	onePermit := func(h *limiter.Hit) {
		failsLocal(h)
		h.Limit = limiter.Limit{Algorithm: limiter.Concurrency, Requests: 1, Window: 10 * time.Second}
	}
	run := func(name string, test func(t *testing.T)) {
		t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
	}
	run("a queue has its turns at the replica", func(t *testing.T) {
		e, begun := newEngine(t, storeFunc(failing)), time.Now()
		for range 4 {
			go e.Decide(t.Context(), []limiter.Hit{with(hit("q"), queued)})
		}
		synctest.Wait()
		if n, longest := e.Waiting(); n != 3 || longest != 3*time.Second {
			t.Errorf("%d wait, the longest for %s", n, longest)
		}
		d := e.Decide(t.Context(), []limiter.Hit{with(hit("q"), queued)})
		if took := time.Since(begun); !d.Allowed || d.Waited != 4*time.Second || took != 4*time.Second {
			t.Errorf("the fifth went on after %s: %+v", took, d)
		}
	})
	run("a client that leaves the replica's queue gives its turn back", func(t *testing.T) {
		e := newEngine(t, storeFunc(failing))
		e.Decide(t.Context(), []limiter.Hit{with(hit("q"), queued)})
		ctx, leave := context.WithCancel(t.Context())
		time.AfterFunc(time.Millisecond, leave)
		if d := e.Decide(ctx, []limiter.Hit{with(hit("q"), queued)}); !d.Left {
			t.Errorf("got %+v", d)
		}
		if d := e.Decide(t.Context(), []limiter.Hit{with(hit("q"), queued)}); !d.Allowed || d.Waited > time.Second {
			t.Errorf("the next waited for %s", d.Waited)
		}
	})
	run("a permit of the replica is kept while its request is under way, and comes back at its end", func(t *testing.T) {
		e, hits := newEngine(t, storeFunc(failing)), []limiter.Hit{with(hit("c"), onePermit)}
		held := e.Decide(t.Context(), hits)
		time.Sleep(time.Hour)
		if d := e.Decide(t.Context(), hits); !held.Allowed || d.Allowed {
			t.Errorf("got %+v and %+v", held, d)
		}
		held.Release()
		d := e.Decide(t.Context(), hits)
		if !d.Allowed {
			t.Errorf("got %+v", d)
		}
		d.Release()
	})
	run("permits that the store can't answer for after the wait are the replica's", func(t *testing.T) {
		store := &inTurn{Store: memorystore.New(memorystore.Options{}), left: 1}
		e, hits := newEngine(t, store), []limiter.Hit{with(hit("q"), queued), with(hit("c"), onePermit)}
		held := e.Decide(t.Context(), hits)
		store.left = 1
		if d := e.Decide(t.Context(), hits); !held.Allowed || d.Allowed || d.Waited != time.Second {
			t.Errorf("got %+v and %+v", held, d)
		}
		held.Release()
		store.left = 1
		d := e.Decide(t.Context(), hits)
		if !d.Allowed {
			t.Errorf("got %+v", d)
		}
		d.Release()
	})
}

// inTurn is a store that answers so many times more.
type inTurn struct {
	limiter.Store
	left int
}

func (s *inTurn) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	if s.left == 0 {
		return nil, errDown
	}
	s.left--
	return s.Store.Take(ctx, hits)
}
