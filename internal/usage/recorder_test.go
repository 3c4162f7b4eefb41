// SPDX-License-Identifier: Apache-2.0

package usage_test

import (
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
	"github.com/weir-dev/weir/internal/usage"
)

var (
	a = limiter.LimitID{Namespace: "shop", Policy: "p", Limit: "a"}
	b = limiter.LimitID{Namespace: "shop", Policy: "p", Limit: "b"}
	// start is when the tests begin.
	start = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
)

// policies gives a policy with these limits.
func policies(ids ...limiter.LimitID) []match.Policy {
	p := match.Policy{Namespace: "shop", Name: "p"}
	for _, id := range ids {
		p.Limits = append(p.Limits, match.Limit{Name: id.Limit})
	}
	return []match.Policy{p}
}

func record(r *usage.Recorder, id limiter.LimitID, o limiter.Outcome, n int) {
	for range n {
		r.Record(id, o)
	}
}

func allowed(name string, n int64) usage.Limit {
	return usage.Limit{Namespace: "shop", Policy: "p", Limit: name, Counts: usage.Counts{Allowed: n}}
}

func wantRecent(t *testing.T, r *usage.Recorder, after time.Duration, want ...usage.Limit) {
	t.Helper()
	if diff := cmp.Diff(want, r.Recent(start.Add(after))); diff != "" {
		t.Errorf("recent after %s (-want +got):\n%s", after, diff)
	}
}

func TestRecent(t *testing.T) {
	t.Run("each outcome is counted by itself", func(t *testing.T) {
		r := usage.NewRecorder()
		r.Keep(policies(a, b))
		record(r, b, limiter.Denied, 2)
		record(r, a, limiter.Allowed, 1)
		record(r, a, limiter.Denied, 2)
		record(r, a, limiter.ShadowDenied, 3)
		record(r, a, limiter.FailedOpen, 4)
		record(r, a, limiter.FailedClosed, 5)
		wantRecent(t, r, 0,
			usage.Limit{Namespace: "shop", Policy: "p", Limit: "a", Counts: usage.Counts{Allowed: 1, Denied: 2, ShadowDenied: 3, FailedOpen: 4, FailedClosed: 5}},
			usage.Limit{Namespace: "shop", Policy: "p", Limit: "b", Counts: usage.Counts{Denied: 2}},
		)
	})

	t.Run("a limit without requests is left out", func(t *testing.T) {
		r := usage.NewRecorder()
		r.Keep(policies(a, b))
		record(r, b, limiter.Allowed, 1)
		wantRecent(t, r, 0, allowed("b", 1))
	})

	t.Run("requests count for five minutes", func(t *testing.T) {
		r := usage.NewRecorder()
		wantRecent(t, r, 0)
		record(r, a, limiter.Allowed, 100)
		for after := 10 * time.Second; after <= usage.Window; after += 10 * time.Second {
			wantRecent(t, r, after, allowed("a", 100))
		}
		// They came somewhen in the first ten seconds, evenly as far as is known.
		wantRecent(t, r, usage.Window+time.Second, allowed("a", 90))
		wantRecent(t, r, usage.Window+5*time.Second, allowed("a", 50))
		wantRecent(t, r, usage.Window+10*time.Second)
	})

	t.Run("steady traffic makes a steady count", func(t *testing.T) {
		r := usage.NewRecorder()
		for after := time.Duration(0); after < 4*usage.Window; after += 1100 * time.Millisecond {
			recent := r.Recent(start.Add(after))
			record(r, a, limiter.Allowed, 11)
			if after < usage.Window+10*time.Second {
				continue
			}
			if diff := cmp.Diff([]usage.Limit{allowed("a", 3000)}, recent, cmp.Comparer(nearly)); diff != "" {
				t.Fatalf("recent after %s (-want +got):\n%s", after, diff)
			}
		}
	})

	t.Run("a long pause leaves nothing", func(t *testing.T) {
		r := usage.NewRecorder()
		wantRecent(t, r, 0)
		record(r, a, limiter.Allowed, 1)
		wantRecent(t, r, time.Minute, allowed("a", 1))
		wantRecent(t, r, time.Hour)
	})

	t.Run("limits that vanish are forgotten, and come back at zero", func(t *testing.T) {
		r := usage.NewRecorder()
		r.Keep(policies(a, b))
		record(r, a, limiter.Allowed, 1000)
		record(r, b, limiter.Allowed, 1)
		wantRecent(t, r, 0, allowed("a", 1000), allowed("b", 1))
		r.Keep(policies(b))
		wantRecent(t, r, time.Minute, allowed("b", 1))
		r.Keep(policies(a, b))
		record(r, a, limiter.Allowed, 2)
		wantRecent(t, r, 2*time.Minute, allowed("a", 2), allowed("b", 1))
		wantRecent(t, r, usage.Window+30*time.Second, allowed("a", 2))
	})

	t.Run("what overflowed is counted beside its outcome", func(t *testing.T) {
		r := usage.NewRecorder()
		r.Keep(policies(a))
		record(r, a, limiter.Denied, 3)
		r.Overflow(a)
		r.Overflow(a)
		wantRecent(t, r, 0, usage.Limit{Namespace: "shop", Policy: "p", Limit: "a", Counts: usage.Counts{Denied: 3, Overflowed: 2}})
	})

	t.Run("no request is lost, whoever else is at work", func(t *testing.T) {
		r := usage.NewRecorder()
		r.Keep(policies(a))
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() { record(r, a, limiter.Allowed, 1000) })
		}
		all.Go(func() {
			for range 100 {
				r.Keep(policies(a, b))
				r.Keep(policies(a))
				r.Recent(start)
			}
		})
		all.Wait()
		if got := gather(t, r)["weir_decisions_total limit=a namespace=shop outcome=allowed policy=p"]; got != 8000 {
			t.Errorf("%v requests were counted, want 8000", got)
		}
	})
}

// nearly allows for the rounding of a sampled count.
func nearly(x, y usage.Counts) bool {
	d := x.Allowed - y.Allowed
	x.Allowed = y.Allowed
	return x == y && -11 <= d && d <= 11
}

func TestDegraded(t *testing.T) {
	for _, outcome := range []limiter.Outcome{limiter.FailedOpen, limiter.FailedClosed, limiter.LocalAllowed, limiter.LocalDenied} {
		t.Run("a failure of the store is told of for ten seconds: "+string(outcome), func(t *testing.T) {
			r := usage.NewRecorder()
			before := time.Now()
			if r.Degraded(before) {
				t.Error("degraded before any failure")
			}
			r.Record(a, outcome)
			after := time.Now()
			if !r.Degraded(before.Add(9 * time.Second)) {
				t.Error("not degraded after 9 s")
			}
			if r.Degraded(after.Add(10 * time.Second)) {
				t.Error("degraded after 10 s")
			}
		})
	}

	t.Run("a denial is no failure", func(t *testing.T) {
		r := usage.NewRecorder()
		r.Record(a, limiter.Denied)
		if r.Degraded(time.Now()) {
			t.Error("degraded by a denial")
		}
	})
}

func TestCollect(t *testing.T) {
	t.Run("a limit has every outcome from the start, and counts all time", func(t *testing.T) {
		r := usage.NewRecorder()
		r.Keep(policies(a))
		record(r, a, limiter.Allowed, 3)
		r.Recent(start)
		record(r, a, limiter.Denied, 1)
		r.Recent(start.Add(time.Hour))
		want := map[string]float64{
			"weir_decisions_total limit=a namespace=shop outcome=allowed policy=p":       3,
			"weir_decisions_total limit=a namespace=shop outcome=denied policy=p":        1,
			"weir_decisions_total limit=a namespace=shop outcome=failed_closed policy=p": 0,
			"weir_decisions_total limit=a namespace=shop outcome=failed_open policy=p":   0,
			"weir_decisions_total limit=a namespace=shop outcome=local_allowed policy=p": 0,
			"weir_decisions_total limit=a namespace=shop outcome=local_denied policy=p":  0,
			"weir_decisions_total limit=a namespace=shop outcome=shadow_denied policy=p": 0,
		}
		if diff := cmp.Diff(want, gather(t, r)); diff != "" {
			t.Errorf("metrics (-want +got):\n%s", diff)
		}
	})
	t.Run("a limit with a key tells of overflows from the start", func(t *testing.T) {
		r := usage.NewRecorder()
		keyed := policies(a)
		keyed[0].Limits[0].Key = []match.KeySource{{Host: true}}
		r.Keep(keyed)
		const series = "weir_overflow_decisions_total limit=a namespace=shop policy=p"
		if got, ok := gather(t, r)[series]; !ok || got != 0 {
			t.Errorf("it is %v at first, and there: %t", got, ok)
		}
		r.Overflow(a)
		if got := gather(t, r)[series]; got != 1 {
			t.Errorf("it is %v after an overflow", got)
		}
	})
}

// gather gives the metrics of a collector by their names and labels.
func gather(t *testing.T, c prometheus.Collector) map[string]float64 {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			series := f.GetName()
			for _, l := range m.GetLabel() {
				series += " " + l.GetName() + "=" + l.GetValue()
			}
			values[series] = m.GetCounter().GetValue()
		}
	}
	return values
}

func BenchmarkRecord(b *testing.B) {
	r := usage.NewRecorder()
	r.Keep(policies(a))
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r.Record(a, limiter.Denied)
		}
	})
}
