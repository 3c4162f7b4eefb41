// SPDX-License-Identifier: Apache-2.0

package memorystore_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
)

// BenchmarkTake gives the time of a decision, and the memory of a key, but for the bytes of the string, which nobody
// keeps. Where others use the machine, quiet-ns/op is the figure to compare: a tenth of the slices of 1000 decisions
// took less. A clock that stands still shows what to read one costs.
func BenchmarkTake(b *testing.B) {
	still := time.Now()
	clocks := map[string]func() time.Time{"clock": nil, "still": func() time.Time { return still }}
	for name, n := range map[string]int{"hot": 1000, "cold": 1_000_000} {
		for clock, now := range clocks {
			b.Run(name+"/"+clock, func(b *testing.B) {
				keys, empty := newKeys(n), heap()
				s := memorystore.New(memorystore.Options{MaxCounters: n, Now: now})
				takeEach(b, s, keys, 0, upTo(n))
				memory := float64(heap()-empty) / float64(n)
				b.Run("single", func(b *testing.B) {
					b.ReportAllocs()
					var timed timings
					takeEach(b, s, keys, 0, func() bool { return timed.next() && b.Loop() })
					b.ReportMetric(timed.quiet(), "quiet-ns/op")
					b.ReportMetric(memory, "B/key")
				})
				b.Run("parallel", func(b *testing.B) {
					b.ReportAllocs()
					start := processorTime(b)
					b.RunParallel(func(pb *testing.PB) { takeEach(b, s, keys, rand.IntN(n), pb.Next) })
					b.ReportMetric(float64(processorTime(b)-start)/float64(b.N), "cpu-ns/op")
				})
			})
		}
	}
}

// takeEach decides a request for one key after the other. Their counters are not where each other's are.
func takeEach(b *testing.B, s *memorystore.Store, keys keys, first int, more func() bool) {
	l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: 100, Window: time.Hour, Burst: 100}
	ctx, hits := b.Context(), []limiter.Hit{{Limit: l, Cost: 1}}
	for i := first; more(); i++ {
		hits[0].Key = keys.at(i)
		if _, err := s.Take(ctx, hits); err != nil {
			b.Error(err)
		}
	}
}

func upTo(n int) func() bool {
	return func() bool { n--; return n >= 0 }
}

// timings are the times that slices of a benchmark took.
type timings struct {
	done  int
	start time.Time
	took  []time.Duration
}

const sliceSize = 1000

func (t *timings) next() bool {
	if t.done%sliceSize == 0 {
		now := time.Now()
		if t.done > 0 {
			t.took = append(t.took, now.Sub(t.start))
		}
		t.start = now
	}
	t.done++
	return true
}

// quiet gives the nanoseconds of one in the slices that were not disturbed.
func (t *timings) quiet() float64 {
	if len(t.took) == 0 {
		return 0
	}
	slices.Sort(t.took)
	return float64(t.took[len(t.took)/10]) / sliceSize
}

// keys are many in one string, as close to the processor as those that were just made for a request.
type keys string

const keyLength = 50

func newKeys(n int) keys {
	var all strings.Builder
	for i := range n {
		fmt.Fprintf(&all, "weir:3f1c8a:{shop/17}:%028x", i)
	}
	return keys(all.String())
}

func (k keys) at(i int) string {
	i = i * keyLength % len(k)
	return string(k[i : i+keyLength])
}

func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

func processorTime(b *testing.B) time.Duration {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		b.Fatal(err)
	}
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
