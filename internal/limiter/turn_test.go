// SPDX-License-Identifier: Apache-2.0

package limiter_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/weir-dev/weir/internal/limiter"
)

// term is how long a permit lasts in these tests.
const term = 30 * time.Second

var (
	q1, q2 = with(hit("q1"), queue), with(hit("q2"), queue)
	c1, c2 = with(hit("c1"), permit), with(hit("c2"), permit)
)

func permit(h *limiter.Hit) {
	h.Limit = limiter.Limit{Algorithm: limiter.Concurrency, Requests: 5, Window: term}
}

func shadow(h *limiter.Hit) { h.Shadow = true }

func peek(h *limiter.Hit) { h.Cost = 0 }

func failClosed(h *limiter.Hit) { h.OnFailure = limiter.FailClosed }

// answer is what a store says to one call of Take.
type answer struct {
	verdicts []limiter.Verdict
	err      error
}

// scripted is a store that gives its answers to Take one after the other, and notes what it is asked and when.
type scripted struct {
	answers []answer
	// renewing and refunding take over the calls if they are set.
	renewing, refunding func(context.Context) error

	mu    sync.Mutex
	start time.Time
	notes []note
}

// note is a call: what was asked, of which keys or receipts, and when since the start.
type note struct {
	Call     string
	Keys     []string
	Receipts []int64
	At       time.Duration
}

func (s *scripted) Take(_ context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := note{Call: "take", At: time.Since(s.start)}
	for _, h := range hits {
		n.Keys = append(n.Keys, h.Key)
	}
	s.notes = append(s.notes, n)
	a := s.answers[0]
	s.answers = s.answers[1:]
	return a.verdicts, a.err
}

func (s *scripted) Refund(ctx context.Context, charges []limiter.Charge) error {
	s.note("refund", charges)
	if s.refunding != nil {
		return s.refunding(ctx)
	}
	return nil
}

func (s *scripted) Renew(ctx context.Context, charges []limiter.Charge) error {
	s.note("renew", charges)
	if s.renewing != nil {
		return s.renewing(ctx)
	}
	return nil
}

func (s *scripted) note(call string, charges []limiter.Charge) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := note{Call: call, At: time.Since(s.start)}
	for _, c := range charges {
		n.Keys, n.Receipts = append(n.Keys, c.Hit.Key), append(n.Receipts, c.Receipt)
	}
	s.notes = append(s.notes, n)
}

// wantNotes compares what the store was asked. The order of the charges in a call means nothing.
func (s *scripted) wantNotes(t *testing.T, want ...note) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if diff := cmp.Diff(want, s.notes, cmpopts.SortSlices(func(a, b int64) bool { return a < b })); diff != "" {
		t.Errorf("calls of the store (-want +got):\n%s", diff)
	}
}

// charged is the verdict on a hit that fits.
func charged(receipt int64) limiter.Verdict { return limiter.Verdict{Allowed: true, Receipt: receipt} }

// slot is the verdict on a hit that has to wait.
func slot(receipt int64, wait time.Duration) limiter.Verdict {
	return limiter.Verdict{Allowed: true, Receipt: receipt, Wait: wait}
}

func TestARequestThatHasToWait(t *testing.T) {
	var (
		a       = hit("a")
		down    = errors.New("no route to the store")
		full    = limiter.Verdict{RetryAfter: time.Minute}
		answers = func(all ...answer) []answer { return all }
		say     = func(verdicts ...limiter.Verdict) answer { return answer{verdicts: verdicts} }
		take    = func(at time.Duration, keys ...string) note { return note{Call: "take", Keys: keys, At: at} }
		refund  = func(at time.Duration, key string, receipt int64) note {
			return note{Call: "refund", Keys: []string{key}, Receipts: []int64{receipt}, At: at}
		}
	)
	tests := map[string]struct {
		hits     []limiter.Hit
		answers  []answer
		want     limiter.Decision
		outcomes outcomes
		notes    []note
	}{
		"is held until its slot": {
			hits:     []limiter.Hit{q1},
			answers:  answers(say(slot(1, time.Second))),
			want:     limiter.Decision{Allowed: true, Hits: []limiter.Hit{q1}, Verdicts: []limiter.Verdict{slot(1, time.Second)}, Waited: time.Second},
			outcomes: outcomes{"q1": {limiter.Allowed}},
			notes:    []note{take(0, "q1")},
		},
		"is not held where its slot is now": {
			hits:     []limiter.Hit{q1},
			answers:  answers(say(slot(1, 0))),
			want:     limiter.Decision{Allowed: true, Hits: []limiter.Hit{q1}, Verdicts: []limiter.Verdict{slot(1, 0)}},
			outcomes: outcomes{"q1": {limiter.Allowed}},
			notes:    []note{take(0, "q1")},
		},
		"is held until the last of its slots": {
			hits:    []limiter.Hit{q1, a, q2},
			answers: answers(say(slot(1, 3*time.Second), charged(2), slot(3, 2*time.Second))),
			want: limiter.Decision{
				Allowed: true, Hits: []limiter.Hit{q1, a, q2},
				Verdicts: []limiter.Verdict{slot(1, 3*time.Second), charged(2), slot(3, 2*time.Second)},
				Waited:   3 * time.Second,
			},
			outcomes: outcomes{"q1": {limiter.Allowed}, "a": {limiter.Allowed}, "q2": {limiter.Allowed}},
			notes:    []note{take(0, "q1", "a", "q2")},
		},
		"is not held if it is refused": {
			hits:    []limiter.Hit{q1, a},
			answers: answers(say(slot(1, time.Second), full)),
			want: limiter.Decision{
				Hits: []limiter.Hit{q1, a}, Verdicts: []limiter.Verdict{slot(1, time.Second), full},
				By: &a, RetryAfter: time.Minute,
			},
			outcomes: outcomes{"a": {limiter.Denied}},
			notes:    []note{take(0, "q1", "a")},
		},
		"is not held for a queue in shadow": {
			hits:    []limiter.Hit{a, with(q1, shadow)},
			answers: answers(say(charged(1), slot(2, time.Second))),
			want: limiter.Decision{
				Allowed: true, Hits: []limiter.Hit{a, with(q1, shadow)},
				Verdicts: []limiter.Verdict{charged(1), slot(2, time.Second)},
			},
			outcomes: outcomes{"a": {limiter.Allowed}, "q1": {limiter.Allowed}},
			notes:    []note{take(0, "a", "q1")},
		},
		"is not held for a peek": {
			hits:     []limiter.Hit{with(q1, peek)},
			answers:  answers(say(slot(0, time.Second))),
			want:     limiter.Decision{Allowed: true, Hits: []limiter.Hit{with(q1, peek)}, Verdicts: []limiter.Verdict{slot(0, time.Second)}},
			outcomes: outcomes{"q1": {limiter.Allowed}},
			notes:    []note{take(0, "q1")},
		},
		"is not held where the store fails": {
			hits:     []limiter.Hit{q1, c1},
			answers:  answers(answer{err: down}),
			want:     limiter.Decision{Allowed: true, Err: down},
			outcomes: outcomes{"q1": {limiter.FailedOpen}, "c1": {limiter.FailedOpen}},
			notes:    []note{take(0, "q1")},
		},
		"is refused where the store fails and any limit fails closed": {
			hits:     []limiter.Hit{q1, with(c1, failClosed)},
			answers:  answers(answer{err: down}),
			want:     limiter.Decision{Err: down, By: new(with(c1, failClosed))},
			outcomes: outcomes{"c1": {limiter.FailedClosed}},
			notes:    []note{take(0, "q1")},
		},
		"takes permits at once where no queue is": {
			hits:    []limiter.Hit{a, c1},
			answers: answers(say(charged(1), charged(2))),
			want: limiter.Decision{
				Allowed: true, Hits: []limiter.Hit{a, c1}, Verdicts: []limiter.Verdict{charged(1), charged(2)},
			},
			outcomes: outcomes{"a": {limiter.Allowed}, "c1": {limiter.Allowed}},
			notes:    []note{take(0, "a", "c1"), refund(0, "c1", 2)},
		},
		"takes permits when its turn has come": {
			hits:    []limiter.Hit{c1, q1, a},
			answers: answers(say(slot(1, time.Second), charged(2)), say(charged(3))),
			want: limiter.Decision{
				Allowed: true, Hits: []limiter.Hit{q1, a, c1},
				Verdicts: []limiter.Verdict{slot(1, time.Second), charged(2), charged(3)},
				Waited:   time.Second,
			},
			outcomes: outcomes{"q1": {limiter.Allowed}, "a": {limiter.Allowed}, "c1": {limiter.Allowed}},
			notes:    []note{take(0, "q1", "a"), take(time.Second, "c1"), refund(time.Second, "c1", 3)},
		},
		"takes permits at once beside a queue in shadow": {
			hits:    []limiter.Hit{c1, with(q1, shadow)},
			answers: answers(say(charged(1), slot(2, time.Second))),
			want: limiter.Decision{
				Allowed: true, Hits: []limiter.Hit{c1, with(q1, shadow)},
				Verdicts: []limiter.Verdict{charged(1), slot(2, time.Second)},
			},
			outcomes: outcomes{"c1": {limiter.Allowed}, "q1": {limiter.Allowed}},
			notes:    []note{take(0, "c1", "q1"), refund(0, "c1", 1)},
		},
		"peeks at permits at once, and holds none": {
			hits:    []limiter.Hit{q1, with(c1, peek)},
			answers: answers(say(slot(1, time.Second), charged(0))),
			want: limiter.Decision{
				Allowed: true, Hits: []limiter.Hit{q1, with(c1, peek)},
				Verdicts: []limiter.Verdict{slot(1, time.Second), charged(0)},
				Waited:   time.Second,
			},
			outcomes: outcomes{"q1": {limiter.Allowed}, "c1": {limiter.Allowed}},
			notes:    []note{take(0, "q1", "c1")},
		},
		"takes the permits of shadow limits and gives them back": {
			hits:    []limiter.Hit{with(c1, shadow)},
			answers: answers(say(charged(1))),
			want: limiter.Decision{
				Allowed: true, Hits: []limiter.Hit{with(c1, shadow)}, Verdicts: []limiter.Verdict{charged(1)},
			},
			outcomes: outcomes{"c1": {limiter.Allowed}},
			notes:    []note{take(0, "c1"), refund(0, "c1", 1)},
		},
		"is admitted without the permit of a shadow limit": {
			hits:    []limiter.Hit{c2, q1, with(c1, shadow)},
			answers: answers(say(slot(1, 0)), say(charged(2), full)),
			want: limiter.Decision{
				Allowed: true, Hits: []limiter.Hit{q1, c2, with(c1, shadow)},
				Verdicts: []limiter.Verdict{slot(1, 0), charged(2), full},
			},
			outcomes: outcomes{"q1": {limiter.Allowed}, "c2": {limiter.Allowed}, "c1": {limiter.ShadowDenied}},
			notes:    []note{take(0, "q1"), take(0, "c2", "c1"), refund(0, "c2", 2)},
		},
		"gives back what it was charged if there is no permit": {
			hits:    []limiter.Hit{q1, with(q2, peek), with(a, shadow), c1},
			answers: answers(say(slot(1, time.Second), slot(0, 2*time.Second), full), say(full)),
			want: limiter.Decision{
				Hits: []limiter.Hit{c1}, Verdicts: []limiter.Verdict{full},
				By: &c1, RetryAfter: time.Minute, Waited: time.Second,
			},
			outcomes: outcomes{"c1": {limiter.Denied}},
			notes:    []note{take(0, "q1", "q2", "a"), take(time.Second, "c1"), refund(time.Second, "q1", 1)},
		},
		"is admitted without permits that can't be counted, and nothing is given back": {
			hits:    []limiter.Hit{q1, c1},
			answers: answers(say(slot(1, time.Second)), answer{err: down}),
			want: limiter.Decision{
				Allowed: true, Hits: []limiter.Hit{q1}, Verdicts: []limiter.Verdict{slot(1, time.Second)},
				Waited: time.Second, Err: down,
			},
			outcomes: outcomes{"q1": {limiter.Allowed}, "c1": {limiter.FailedOpen}},
			notes:    []note{take(0, "q1"), take(time.Second, "c1")},
		},
		"gives back what it was charged if permits can't be counted and fail closed": {
			hits:     []limiter.Hit{q1, with(c1, failClosed)},
			answers:  answers(say(slot(1, time.Second)), answer{err: down}),
			want:     limiter.Decision{By: new(with(c1, failClosed)), Waited: time.Second, Err: down},
			outcomes: outcomes{"c1": {limiter.FailedClosed}},
			notes:    []note{take(0, "q1"), take(time.Second, "c1"), refund(time.Second, "q1", 1)},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store, told := &scripted{answers: test.answers, start: time.Now()}, outcomes{}
				got := limiter.NewEngine(store, told).Decide(t.Context(), test.hits)
				got.Release()
				got.Release()
				if diff := cmp.Diff(test.want, got, decisions...); diff != "" {
					t.Errorf("decision (-want +got):\n%s", diff)
				}
				if diff := cmp.Diff(test.outcomes, told); diff != "" {
					t.Errorf("outcomes (-want +got):\n%s", diff)
				}
				store.wantNotes(t, test.notes...)
			})
		})
	}
}

func TestARequestThatLeaves(t *testing.T) {
	wait := []limiter.Verdict{slot(7, 3*time.Second), charged(8), charged(9)}
	hits := []limiter.Hit{q1, hit("a"), with(hit("s"), shadow), c1}
	run := func(name string, test func(t *testing.T, store *scripted)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test(t, &scripted{answers: []answer{{verdicts: wait}}, start: time.Now()})
			})
		})
	}
	decide := func(t *testing.T, store *scripted, patience time.Duration) (limiter.Decision, outcomes) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		told := outcomes{}
		engine := limiter.NewEngine(store, told)
		d := engine.Decide(ctx, hits)
		if n, _ := engine.Waiting(); n != 0 {
			t.Errorf("%d requests are still held", n)
		}
		return d, told
	}
	wantLeft := func(t *testing.T, after time.Duration, got limiter.Decision, told outcomes) {
		t.Helper()
		if diff := cmp.Diff(limiter.Decision{Left: true, Waited: after}, got, decisions...); diff != "" {
			t.Errorf("decision (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(outcomes{}, told); diff != "" {
			t.Errorf("outcomes (-want +got):\n%s", diff)
		}
	}
	refund := func(at time.Duration) note {
		return note{Call: "refund", Keys: []string{"q1", "a", "s"}, Receipts: []int64{7, 8, 9}, At: at}
	}
	take := note{Call: "take", Keys: []string{"q1", "a", "s"}}

	run("gives back all that it was charged, and has no outcome", func(t *testing.T, store *scripted) {
		d, told := decide(t, store, time.Second)
		wantLeft(t, time.Second, d, told)
		store.wantNotes(t, take, refund(time.Second))
	})
	run("may have left before the verdict was there", func(t *testing.T, store *scripted) {
		d, told := decide(t, store, 0)
		wantLeft(t, 0, d, told)
		store.wantNotes(t, take, refund(0))
	})
	run("is let go by a store that doesn't answer after a second", func(t *testing.T, store *scripted) {
		store.refunding = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		d, told := decide(t, store, time.Second)
		wantLeft(t, time.Second, d, told)
		if took := time.Since(store.start); took != 2*time.Second {
			t.Errorf("it took %s", took)
		}
	})
}

// inOrder is a store that gives one request after the other a slot, after the times that the verdicts take to
// arrive.
type inOrder struct {
	generous
	mu    sync.Mutex
	slots []lateSlot
}

type lateSlot struct{ late, wait time.Duration }

func (s *inOrder) Take(context.Context, []limiter.Hit) ([]limiter.Verdict, error) {
	s.mu.Lock()
	next := s.slots[0]
	s.slots = s.slots[1:]
	receipt := int64(-len(s.slots))
	s.mu.Unlock()
	time.Sleep(next.late)
	return []limiter.Verdict{slot(receipt, next.wait)}, nil
}

func TestRequestsGoOnInTheOrderOfTheirSlots(t *testing.T) {
	const ms = time.Millisecond
	tests := map[string]struct {
		slots []lateSlot
		// leaves is when the first request leaves. Zero for never.
		leaves time.Duration
		want   []time.Duration
	}{
		"each at its time": {
			slots: []lateSlot{{0, 10 * ms}, {0, 20 * ms}, {0, 30 * ms}},
			want:  []time.Duration{10 * ms, 20 * ms, 30 * ms},
		},
		"the later one waits for the earlier one, whose verdict took longer": {
			slots: []lateSlot{{3 * ms, 10 * ms}, {0, 11 * ms}, {0, 12 * ms}, {0, 20 * ms}},
			want:  []time.Duration{13 * ms, 13 * ms, 13 * ms, 20 * ms},
		},
		"the later one doesn't wait for a verdict that comes after its turn": {
			slots: []lateSlot{{30 * ms, 0}, {0, 11 * ms}},
			want:  []time.Duration{30 * ms, 11 * ms},
		},
		"the later one doesn't wait for one that has left": {
			slots:  []lateSlot{{5 * ms, 10 * ms}, {0, 11 * ms}, {0, 12 * ms}},
			leaves: 11 * ms,
			want:   []time.Duration{11 * ms, 11 * ms, 12 * ms},
		},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				engine := limiter.NewEngine(&inOrder{slots: test.slots}, nobody{})
				ctx, leave := context.WithCancel(t.Context())
				defer leave()
				if test.leaves > 0 {
					time.AfterFunc(test.leaves, leave)
				}
				start, went := time.Now(), make([]time.Duration, len(test.slots))
				decide := func(ctx context.Context, i int) {
					engine.Decide(ctx, []limiter.Hit{q1})
					went[i] = time.Since(start)
				}
				go decide(ctx, 0)
				for i := 1; i < len(test.slots); i++ {
					synctest.Wait() // So that the slots are given in this order.
					go decide(t.Context(), i)
				}
				time.Sleep(time.Second)
				synctest.Wait()
				if diff := cmp.Diff(test.want, went); diff != "" {
					t.Errorf("times (-want +got):\n%s", diff)
				}
			})
		})
	}
	t.Run("those of other counters go their own way", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			engine := limiter.NewEngine(&inOrder{slots: []lateSlot{{0, 20 * ms}, {0, 10 * ms}}}, nobody{})
			start := time.Now()
			go func() { engine.Decide(t.Context(), []limiter.Hit{q1}) }()
			synctest.Wait()
			engine.Decide(t.Context(), []limiter.Hit{q2})
			if took := time.Since(start); took != 10*ms {
				t.Errorf("it took %s", took)
			}
			if n, longest := engine.Waiting(); n != 1 || longest != 10*ms {
				t.Errorf("%d requests wait, for up to %s", n, longest)
			}
			time.Sleep(10 * ms)
			synctest.Wait()
		})
	})
}

func TestPermitsAreRenewed(t *testing.T) {
	// decide starts so many requests with a permit each, and gives what ends them.
	decide := func(t *testing.T, engine *limiter.Engine, store *scripted, requests int) (release func()) {
		t.Helper()
		var all []limiter.Decision
		for i := range requests {
			store.answers = append(store.answers, answer{verdicts: []limiter.Verdict{charged(int64(i))}})
		}
		for range requests {
			all = append(all, engine.Decide(t.Context(), []limiter.Hit{c1}))
		}
		return func() {
			for _, d := range all {
				d.Release()
			}
		}
	}
	run := func(name string, test func(t *testing.T, engine *limiter.Engine, store *scripted)) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				store := &scripted{start: time.Now()}
				engine := limiter.NewEngine(store, nobody{})
				ctx, stop := context.WithCancel(t.Context())
				stopped := make(chan struct{})
				go func() { defer close(stopped); engine.Run(ctx) }()
				test(t, engine, store)
				stop()
				<-stopped
			})
		})
	}
	take := note{Call: "take", Keys: []string{"c1"}}
	renewal := func(at time.Duration, receipts ...int64) note {
		n := note{Call: "renew", Receipts: receipts, At: at}
		for range receipts {
			n.Keys = append(n.Keys, "c1")
		}
		return n
	}
	refund := func(at time.Duration) note {
		return note{Call: "refund", Keys: []string{"c1"}, Receipts: []int64{0}, At: at}
	}

	run("when half their term is over, until the request is", func(t *testing.T, engine *limiter.Engine, store *scripted) {
		release := decide(t, engine, store, 1)
		time.Sleep(term + time.Second)
		release()
		time.Sleep(time.Hour)
		store.wantNotes(t, take, renewal(term/2, 0), renewal(term, 0), refund(term+time.Second))
	})
	run("together, if a third of their term is over", func(t *testing.T, engine *limiter.Engine, store *scripted) {
		decide(t, engine, store, 1)
		time.Sleep(term / 6)
		decide(t, engine, store, 1)
		time.Sleep(time.Nanosecond)
		decide(t, engine, store, 1)
		time.Sleep(term / 2)
		synctest.Wait()
		store.wantNotes(t, take, withTime(take, term/6), withTime(take, term/6+1),
			renewal(term/2, 0, 0), renewal(term/2+term/6+1, 0))
	})
	run("not if the request was over before", func(t *testing.T, engine *limiter.Engine, store *scripted) {
		release := decide(t, engine, store, 1)
		time.Sleep(term/2 - 1)
		release()
		time.Sleep(time.Hour)
		store.wantNotes(t, take, refund(term/2-1))
	})
	run("again a sixth of their term later, if that fails", func(t *testing.T, engine *limiter.Engine, store *scripted) {
		down := errors.New("no route to the store")
		store.renewing = func(context.Context) error { defer func() { down = nil }(); return down }
		decide(t, engine, store, 1)
		time.Sleep(term/2 + term/6 + term/2)
		synctest.Wait()
		store.wantNotes(t, take, renewal(term/2, 0), renewal(term/2+term/6, 0), renewal(term+term/6, 0))
	})
	run("one call after the other, though the store hangs", func(t *testing.T, engine *limiter.Engine, store *scripted) {
		var calls int
		store.renewing = func(ctx context.Context) error {
			calls++
			defer func() { calls-- }()
			<-ctx.Done()
			if calls > 1 {
				t.Error("a call was made while another was under way")
			}
			return ctx.Err()
		}
		release := decide(t, engine, store, 1)
		time.Sleep(term/2 + term/6)
		synctest.Wait()
		store.wantNotes(t, take, renewal(term/2, 0), renewal(term/2+term/6, 0))
		release()
	})
	run("128 at a time", func(t *testing.T, engine *limiter.Engine, store *scripted) {
		var renewed []int
		decide(t, engine, store, 300)
		time.Sleep(term / 2)
		synctest.Wait()
		seen := map[int64]bool{}
		for _, n := range store.notes[300:] {
			renewed = append(renewed, len(n.Receipts))
			for _, r := range n.Receipts {
				seen[r] = true
			}
		}
		if diff := cmp.Diff([]int{128, 128, 44}, renewed); diff != "" || len(seen) != 300 {
			t.Errorf("%d permits were renewed, in calls of (-want +got):\n%s", len(seen), diff)
		}
	})
	run("sooner, if one with a shorter term comes", func(t *testing.T, engine *limiter.Engine, store *scripted) {
		decide(t, engine, store, 1)
		brief := with(c2, func(h *limiter.Hit) { h.Limit.Window = time.Second })
		store.answers = []answer{{verdicts: []limiter.Verdict{charged(5)}}}
		d := engine.Decide(t.Context(), []limiter.Hit{brief})
		time.Sleep(time.Second)
		synctest.Wait()
		d.Release()
		brieflyRenewed := func(at time.Duration) note {
			return note{Call: "renew", Keys: []string{"c2"}, Receipts: []int64{5}, At: at}
		}
		store.wantNotes(t, take, note{Call: "take", Keys: []string{"c2"}},
			brieflyRenewed(time.Second/2), brieflyRenewed(time.Second),
			note{Call: "refund", Keys: []string{"c2"}, Receipts: []int64{5}, At: time.Second})
	})
}

func withTime(n note, at time.Duration) note {
	n.At = at
	return n
}
