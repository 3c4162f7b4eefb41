// SPDX-License-Identifier: Apache-2.0

package limiter_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
)

// storeFunc is a store of one function, which is asked for nothing but decisions.
type storeFunc func(hits []limiter.Hit) ([]limiter.Verdict, error)

func (f storeFunc) Take(_ context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	return f(hits)
}

func (storeFunc) Refund(context.Context, []limiter.Charge) error { panic("refunded") }

func (storeFunc) Renew(context.Context, []limiter.Charge) error { panic("renewed") }

// outcomes are what a recorder was told, by the name of the limit.
type outcomes map[string][]limiter.Outcome

func (o outcomes) Record(id limiter.LimitID, outcome limiter.Outcome) {
	o[id.Limit] = append(o[id.Limit], outcome)
}

// errDown is why a store that is failing does.
var errDown = errors.New("no route to the store")

func failing([]limiter.Hit) ([]limiter.Verdict, error) { return nil, errDown }

func unasked([]limiter.Hit) ([]limiter.Verdict, error) { panic("the store was asked") }

func answering(verdicts ...limiter.Verdict) storeFunc {
	return func([]limiter.Hit) ([]limiter.Verdict, error) { return verdicts, nil }
}

func asShadow(h limiter.Hit) limiter.Hit {
	h.Shadow = true
	return h
}

func TestEngine(t *testing.T) {
	var (
		a, b    = hit("a"), hit("b")
		shadow  = with(hit("shadow"), func(h *limiter.Hit) { h.Shadow = true })
		closed  = with(hit("closed"), func(h *limiter.Hit) { h.OnFailure = limiter.FailClosed })
		deny    = with(hit("deny"), func(h *limiter.Hit) { h.Deny, h.Key = true, "" })
		allowed = limiter.Verdict{Allowed: true, Remaining: 4, ResetAfter: time.Second}
		short   = limiter.Verdict{RetryAfter: time.Second, ResetAfter: time.Second}
		long    = limiter.Verdict{RetryAfter: time.Minute, ResetAfter: time.Second}
		never   = limiter.Verdict{RetryAfter: limiter.Never, ResetAfter: time.Second}
	)
	tests := map[string]struct {
		hits     []limiter.Hit
		store    storeFunc
		want     limiter.Decision
		outcomes outcomes
	}{
		"a request that hits no limit is allowed": {
			store:    unasked,
			want:     limiter.Decision{Allowed: true},
			outcomes: outcomes{},
		},
		"a request that all limits allow is allowed": {
			hits:     []limiter.Hit{a, b},
			store:    answering(allowed, allowed),
			want:     limiter.Decision{Allowed: true, Hits: []limiter.Hit{a, b}, Verdicts: []limiter.Verdict{allowed, allowed}},
			outcomes: outcomes{"a": {limiter.Allowed}, "b": {limiter.Allowed}},
		},
		"one limit refuses, and the others have no outcome": {
			hits:  []limiter.Hit{a, b},
			store: answering(allowed, short),
			want: limiter.Decision{
				Hits: []limiter.Hit{a, b}, Verdicts: []limiter.Verdict{allowed, short},
				By: &b, RetryAfter: time.Second,
			},
			outcomes: outcomes{"b": {limiter.Denied}},
		},
		"the longest wait is told": {
			hits:  []limiter.Hit{a, b},
			store: answering(long, short),
			want: limiter.Decision{
				Hits: []limiter.Hit{a, b}, Verdicts: []limiter.Verdict{long, short},
				By: &a, RetryAfter: time.Minute,
			},
			outcomes: outcomes{"a": {limiter.Denied}, "b": {limiter.Denied}},
		},
		"never is the longest wait": {
			hits:  []limiter.Hit{a, b},
			store: answering(long, never),
			want: limiter.Decision{
				Hits: []limiter.Hit{a, b}, Verdicts: []limiter.Verdict{long, never},
				By: &b, RetryAfter: limiter.Never,
			},
			outcomes: outcomes{"a": {limiter.Denied}, "b": {limiter.Denied}},
		},
		"a shadow limit refuses nobody and says that it would have": {
			hits:  []limiter.Hit{a, shadow},
			store: answering(allowed, short),
			want: limiter.Decision{
				Allowed: true, Hits: []limiter.Hit{a, shadow}, Verdicts: []limiter.Verdict{allowed, short},
			},
			outcomes: outcomes{"a": {limiter.Allowed}, "shadow": {limiter.ShadowDenied}},
		},
		"a shadow limit has no outcome when another refuses": {
			hits:  []limiter.Hit{a, shadow},
			store: answering(short, limiter.Verdict{}),
			want: limiter.Decision{
				Hits: []limiter.Hit{a}, Verdicts: []limiter.Verdict{short},
				By: &a, RetryAfter: time.Second,
			},
			outcomes: outcomes{"a": {limiter.Denied}},
		},
		"a limit of which nothing is known beside one that refuses has no outcome, and is left out": {
			hits:  []limiter.Hit{a, b},
			store: answering(limiter.Verdict{}, short),
			want: limiter.Decision{
				Hits: []limiter.Hit{b}, Verdicts: []limiter.Verdict{short},
				By: &b, RetryAfter: time.Second,
			},
			outcomes: outcomes{"b": {limiter.Denied}},
		},
		"a hit to be denied is refused for ever, and no counter is asked": {
			hits:     []limiter.Hit{a, deny},
			store:    unasked,
			want:     limiter.Decision{By: &deny, RetryAfter: limiter.Never},
			outcomes: outcomes{"deny": {limiter.Denied}},
		},
		"a shadow hit to be denied is told and left out": {
			hits:     []limiter.Hit{asShadow(deny), a},
			store:    answering(allowed),
			want:     limiter.Decision{Allowed: true, Hits: []limiter.Hit{a}, Verdicts: []limiter.Verdict{allowed}},
			outcomes: outcomes{"deny": {limiter.ShadowDenied}, "a": {limiter.Allowed}},
		},
		"a request of nothing but shadow hits to be denied is allowed": {
			hits:     []limiter.Hit{asShadow(deny)},
			store:    unasked,
			want:     limiter.Decision{Allowed: true},
			outcomes: outcomes{"deny": {limiter.ShadowDenied}},
		},
		"a store that fails lets open limits through": {
			hits:     []limiter.Hit{a, b},
			store:    failing,
			want:     limiter.Decision{Allowed: true, Err: errDown},
			outcomes: outcomes{"a": {limiter.FailedOpen}, "b": {limiter.FailedOpen}},
		},
		"a store that fails makes one closed limit refuse": {
			hits:     []limiter.Hit{a, closed},
			store:    failing,
			want:     limiter.Decision{By: &closed, Err: errDown},
			outcomes: outcomes{"closed": {limiter.FailedClosed}},
		},
		"a store that fails makes no shadow limit refuse": {
			hits:     []limiter.Hit{a, asShadow(closed)},
			store:    failing,
			want:     limiter.Decision{Allowed: true, Err: errDown},
			outcomes: outcomes{"a": {limiter.FailedOpen}, "closed": {limiter.FailedOpen}},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			told := outcomes{}
			got := limiter.NewEngine(test.store, told).Decide(t.Context(), test.hits)
			got.Release()
			if diff := cmp.Diff(test.want, got, decisions...); diff != "" {
				t.Errorf("decision (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.outcomes, told); diff != "" {
				t.Errorf("outcomes (-want +got):\n%s", diff)
			}
		})
	}
	t.Run("a real store's refusal is told, and charges nothing", func(t *testing.T) {
		told := outcomes{}
		engine := limiter.NewEngine(memorystore.New(memorystore.Options{}), told)
		large := with(hit("large"), func(h *limiter.Hit) { h.Cost = 10 })
		for range 3 {
			engine.Decide(t.Context(), []limiter.Hit{a, large})
		}
		if d := engine.Decide(t.Context(), []limiter.Hit{a}); !d.Allowed || d.Verdicts[0].Remaining != 4 {
			t.Errorf("got %+v", d)
		}
		want := outcomes{"large": {limiter.Denied, limiter.Denied, limiter.Denied}, "a": {limiter.Allowed}}
		if diff := cmp.Diff(want, told); diff != "" {
			t.Errorf("outcomes (-want +got):\n%s", diff)
		}
	})
}

// decisions compares them but for the permits, of which a store tells more.
var decisions = cmp.Options{cmpopts.EquateErrors(), cmpopts.IgnoreUnexported(limiter.Decision{})}

func BenchmarkDecide(b *testing.B) {
	a, q, c := hit("a"), with(hit("q"), queue), with(hit("c"), permit)
	for name, hits := range map[string][]limiter.Hit{"one limit": {a}, "three limits": {a, a, a}, "a queue without a wait": {q}, "a permit": {c}} {
		b.Run(name, func(b *testing.B) {
			verdicts := make([]limiter.Verdict, len(hits))
			for i := range verdicts {
				verdicts[i] = limiter.Verdict{Allowed: true}
			}
			engine := limiter.NewEngine(generous(verdicts), nobody{})
			ctx, cancel := context.WithCancel(b.Context())
			defer cancel()
			b.ReportAllocs()
			for b.Loop() {
				d := engine.Decide(ctx, hits)
				d.Release()
			}
		})
	}
}

// generous is a store that always says the same.
type generous []limiter.Verdict

func (g generous) Take(context.Context, []limiter.Hit) ([]limiter.Verdict, error) { return g, nil }

func (generous) Refund(context.Context, []limiter.Charge) error { return nil }

func (generous) Renew(context.Context, []limiter.Charge) error { return nil }

// nobody wants to know any outcomes.
type nobody struct{}

func (nobody) Record(limiter.LimitID, limiter.Outcome) {}

func queue(h *limiter.Hit) { h.Limit.Algorithm = limiter.LeakyBucketQueue }

// hit is one on a counter of 5 an hour.
func hit(limit string) limiter.Hit {
	return limiter.Hit{
		Key:   limit,
		Limit: limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 5, Window: time.Hour, Burst: 5},
		Cost:  1,
		ID:    limiter.LimitID{Namespace: "shop", Policy: "checkout", Limit: limit},
	}
}

func with(h limiter.Hit, change func(*limiter.Hit)) limiter.Hit {
	change(&h)
	return h
}
