// SPDX-License-Identifier: Apache-2.0

package strategy_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

var (
	bucket = limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 10, Window: time.Second, Burst: 20}
	window = limiter.Limit{Algorithm: limiter.FixedWindow, Requests: 5, Window: time.Minute}
)

// wire is all that is sent of a call.
type wire struct {
	Keys     []string
	Terms    []float64
	Requests []byte
}

func callOf(now int64, requests ...strategy.Request) *strategy.Call {
	var c strategy.Call
	c.Reset(now)
	for _, r := range requests {
		c.Add(r)
	}
	return &c
}

func wireOf(c *strategy.Call) wire {
	args := c.Args()
	w := wire{Keys: c.Keys(), Requests: []byte(args[1].(string))}
	for terms := []byte(args[0].(string)); len(terms) > 0; terms = terms[8:] {
		w.Terms = append(w.Terms, math.Float64frombits(binary.LittleEndian.Uint64(terms)))
	}
	return w
}

func take(hits ...limiter.Hit) strategy.Request { return strategy.Request{Hits: hits} }

func TestCall(t *testing.T) {
	check := func(t *testing.T, want wire, requests ...strategy.Request) {
		t.Helper()
		if diff := cmp.Diff(want, wireOf(callOf(epoch, requests...))); diff != "" {
			t.Errorf("the call (-want +got):\n%s", diff)
		}
	}
	a, b := limiter.Hit{Key: "a", Limit: bucket, Cost: 1}, limiter.Hit{Key: "b", Limit: window, Cost: 99, Shadow: true}
	bucketTerms := []float64{1, 10, 1, 0, 10, 1_000_000, 20, 20, 0, 0}
	shadowTerms := []float64{2, 11, 6, 1, 5, 60_000_000, 0, 0, 0, 0}
	t.Run("counters and terms are told once, and hits point to them", func(t *testing.T) {
		c := a
		c.Key = "c"
		check(t, wire{
			Keys:     []string{"a", "b", "c"},
			Terms:    append(bucketTerms, shadowTerms...),
			Requests: []byte{1, 1, 0, 2, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 0, 1, 0, 2, 0, 0},
		}, take(a, b), take(c))
	})
	t.Run("equal requests are told as one", func(t *testing.T) {
		check(t, wire{
			Keys:     []string{"a", "b"},
			Terms:    append(bucketTerms, shadowTerms...),
			Requests: []byte{1, 3, 0, 1, 0, 0, 0, 0, 1, 1, 0, 1, 0, 1, 0, 1},
		}, take(a), take(b), take(a), take(a))
	})
	t.Run("equal requests are not, when another hits their counter in between", func(t *testing.T) {
		check(t, wire{
			Keys:     []string{"a", "b"},
			Terms:    append(bucketTerms, shadowTerms...),
			Requests: []byte{1, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0, 2, 0, 1, 0, 1, 0, 0, 0, 0, 1, 1, 0, 1, 0, 0, 0, 0},
		}, take(a), take(b, a), take(a))
	})
	t.Run("equal requests are not, when another hits the last of their counters in between", func(t *testing.T) {
		check(t, wire{
			Keys:     []string{"a", "b"},
			Terms:    append(bucketTerms, shadowTerms...),
			Requests: []byte{1, 1, 0, 2, 0, 0, 0, 0, 0, 1, 0, 1, 1, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 2, 0, 0, 0, 0, 0, 1, 0, 1},
		}, take(a, b), take(b), take(a, b))
	})
	t.Run("to try is not to take", func(t *testing.T) {
		check(t, wire{
			Keys:     []string{"a"},
			Terms:    bucketTerms,
			Requests: []byte{1, 1, 0, 1, 0, 0, 0, 0, 2, 1, 0, 1, 0, 0, 0, 0},
		}, take(a), strategy.Request{Hits: []limiter.Hit{a}, Try: true})
	})
	t.Run("each charge is refunded or renewed by its receipt", func(t *testing.T) {
		one, two := math.Float64bits(1), math.Float64bits(2)
		requests := binary.LittleEndian.AppendUint64([]byte{3, 1, 0, 1, 0, 0, 0, 0}, one)
		requests = binary.LittleEndian.AppendUint64(append(requests, 3, 1, 0, 1, 0, 0, 0, 0), two)
		requests = binary.LittleEndian.AppendUint64(append(requests, 4, 1, 0, 1, 0, 0, 0, 0), one)
		check(t, wire{Keys: []string{"a"}, Terms: bucketTerms, Requests: requests},
			strategy.Request{Hits: []limiter.Hit{a, a}, Receipts: []int64{1, 2}},
			strategy.Request{Hits: []limiter.Hit{a}, Receipts: []int64{1}, Renew: true})
	})
	t.Run("a calendar is told as the starts of the last window, this one and three more", func(t *testing.T) {
		l := limiter.Limit{Algorithm: limiter.CalendarWindow, Requests: 5, Calendar: limiter.Calendar{Unit: limiter.Month, TimeZone: "UTC"}}
		terms := []float64{6, 11, 1, 0, 5}
		for n := range 5 {
			terms = append(terms, float64(time.Date(2025, time.Month(12+n), 1, 0, 0, 0, 0, time.UTC).UnixMicro()))
		}
		check(t, wire{Keys: []string{"a"}, Terms: terms, Requests: []byte{1, 1, 0, 1, 0, 0, 0, 0}}, take(limiter.Hit{Key: "a", Limit: l, Cost: 1}))
	})
	t.Run("a call that is used again has nothing of the last time", func(t *testing.T) {
		c := callOf(epoch, take(a, b), take(a))
		c.Reset(epoch)
		c.Add(take(b))
		if diff := cmp.Diff(wireOf(callOf(epoch, take(b))), wireOf(c)); diff != "" {
			t.Errorf("the call (-new +used again):\n%s", diff)
		}
	})
}

func TestVerdicts(t *testing.T) {
	hit := limiter.Hit{Key: "a", Limit: window, Cost: 1}
	finish := epoch - epoch%60_000_000 + 60_000_000
	state := string(binary.LittleEndian.AppendUint64(binary.LittleEndian.AppendUint64([]byte{11, 0, 0, 0, 0, 0},
		math.Float64bits(float64(finish))), math.Float64bits(5)))
	t.Run("each of equal requests is told its own verdict", func(t *testing.T) {
		got, err := callOf(epoch, take(hit), take(hit), take(hit)).Verdicts([]any{epoch, "\x02", state})
		if err != nil {
			t.Fatal(err)
		}
		left := time.Duration(finish-epoch) * time.Microsecond
		want := [][]limiter.Verdict{
			{{Allowed: true, Remaining: 1, ResetAfter: left, Receipt: finish}},
			{{Allowed: true, ResetAfter: left, Receipt: finish}},
			{{RetryAfter: left, ResetAfter: left}},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("verdicts (-want +got):\n%s", diff)
		}
	})
	for _, algorithm := range strategy.Names() {
		t.Run("a reply that says nothing of a counter is told as if nothing was taken from it: "+string(algorithm), func(t *testing.T) {
			h := hitOf(algorithm)
			got, err := callOf(epoch, take(h)).Verdicts([]any{epoch, "\x00", ""})
			if err != nil {
				t.Fatal(err)
			}
			want := peek(strategy.Counter{}, epoch, h.Limit, 0).Remaining
			if got[0][0].Remaining != want {
				t.Errorf("%d remain, not %d", got[0][0].Remaining, want)
			}
		})
	}
	t.Run("a reply of one number is the time that the call should have been for", func(t *testing.T) {
		_, err := callOf(epoch, take(hit)).Verdicts([]any{epoch + 1})
		var stale *strategy.StaleError
		if !errors.As(err, &stale) || stale.Now != epoch+1 {
			t.Errorf("the error is %v", err)
		}
	})
	for name, reply := range map[string][]any{
		"an empty reply is an error":               nil,
		"a reply without a time is an error":       {"a", "\x01", state},
		"a time before 1970 is an error":           {int64(-1), "\x01", state},
		"a time that nobody will see is an error":  {int64(1<<53 + 1), "\x01", state},
		"a reply that is too short is an error":    {epoch, "\x01"},
		"a reply that is too long is an error":     {epoch, "\x01", state, state},
		"admissions of too few are an error":       {epoch, "", state},
		"admissions of too many are an error":      {epoch, "\x01\x01", state},
		"admissions that are no text are an error": {epoch, int64(1), state},
		"a state that is a number is an error":     {epoch, "\x01", int64(2)},
		"more admitted than asked for is an error": {epoch, "\x02", state},
		"a state that is cut off is an error":      {epoch, "\x01", state[:12]},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := callOf(epoch, take(hit)).Verdicts(reply); err == nil {
				t.Errorf("got %+v", got)
			}
		})
	}
}

// FuzzVerdicts looks for replies that are not survived: Redis holds what anybody with the right to has written there.
func FuzzVerdicts(f *testing.F) {
	var c strategy.Call
	for n, algorithm := range strategy.Names() {
		var e strategy.Evaluator
		var counter strategy.Counter
		decide(&e, epoch, hitOf(algorithm), &counter)
		said := append([]byte{counter.Layout, 0, 0, 0, 0, 0}, counter.State...)
		f.Add(n, epoch, []byte{1, 1}, append(said, said...))
		f.Add(n, epoch, []byte{0, 2}, said)
		f.Add(n, int64(math.MinInt64), []byte{255}, []byte{})
		f.Add(n, int64(math.MaxInt64), []byte{1, 1}, bytes.Repeat([]byte{255}, 2*len(said)))
	}
	f.Fuzz(func(t *testing.T, algorithm int, now int64, admissions, said []byte) {
		names := strategy.Names()
		if algorithm < 0 || algorithm >= len(names) {
			return
		}
		h := hitOf(names[algorithm])
		other := h
		other.Key = "b"
		requests := []strategy.Request{take(h), take(h), take(other)}
		c.Reset(epoch)
		for _, r := range requests {
			c.Add(r)
		}
		verdicts, err := c.Verdicts([]any{now, string(admissions), string(said)})
		if err == nil && len(verdicts) != len(requests) {
			t.Errorf("%d requests got %d verdicts", len(requests), len(verdicts))
		}
	})
}

// hitOf gives a hit of a limit that the algorithm can have.
func hitOf(algorithm limiter.Algorithm) limiter.Hit {
	l := limiter.Limit{Algorithm: algorithm, Requests: 5, Window: time.Minute, Burst: 5}
	l.Calendar = limiter.Calendar{Unit: limiter.Day, TimeZone: "UTC"}
	return limiter.Hit{Key: "a", Limit: l, Cost: 1}
}
