// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/throttled/throttled/v2"
	"github.com/throttled/throttled/v2/store/memstore"
	ululelimiter "github.com/ulule/limiter/v3"
	ululememory "github.com/ulule/limiter/v3/drivers/store/memory"
	"golang.org/x/time/rate"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
)

// In process all limit alike, too: to so little in a window that whoever took once is remembered for long, and to so
// much at once that nobody is refused.
const (
	slow  = 100
	burst = 1_000_000
)

// local is a limiter in process. Open gives one for so many keys, from which each caller gets its own way to ask.
type local struct {
	name string
	open func(keys int) (func() decide, error)
}

var locals = []local{
	{"weir", openMemory},
	{"x/time/rate in a sync.Map", openRates},
	{"throttled, memstore", openThrottledMemory},
	{"ulule/limiter, memory", openUluleMemory},
}

// openMemory gives each caller a request to use again, as one does that is made on the stack.
func openMemory(keys int) (func() decide, error) {
	store := memorystore.New(memorystore.Options{MaxCounters: keys})
	l := limiter.Limit{Algorithm: limiter.TokenBucket, Requests: slow, Window: time.Hour, Burst: burst}
	return func() decide {
		hits := []limiter.Hit{{Limit: l, Cost: 1}}
		return func(ctx context.Context, key string) (bool, error) {
			hits[0].Key = key
			verdicts, err := store.Take(ctx, hits)
			if err != nil {
				return false, err
			}
			return verdicts[0].Allowed, nil
		}
	}, nil
}

// openRates is what many write themselves. It never forgets a key.
func openRates(int) (func() decide, error) {
	var all sync.Map
	return shared(func(_ context.Context, key string) (bool, error) {
		l, ok := all.Load(key)
		if !ok {
			l, _ = all.LoadOrStore(key, rate.NewLimiter(rate.Every(time.Hour/slow), burst))
		}
		return l.(*rate.Limiter).Allow(), nil
	}), nil
}

func openThrottledMemory(keys int) (func() decide, error) {
	store, err := memstore.NewCtx(keys)
	if err != nil {
		return nil, err
	}
	l, err := throttled.NewGCRARateLimiterCtx(store, throttled.RateQuota{MaxRate: throttled.PerHour(slow), MaxBurst: burst - 1})
	if err != nil {
		return nil, err
	}
	return shared(func(ctx context.Context, key string) (bool, error) {
		limited, _, err := l.RateLimitCtx(ctx, key, 1)
		return !limited, err
	}), nil
}

func openUluleMemory(int) (func() decide, error) {
	l := ululelimiter.New(ululememory.NewStore(), ululelimiter.Rate{Period: time.Hour, Limit: burst})
	return shared(func(ctx context.Context, key string) (bool, error) {
		r, err := l.Get(ctx, key)
		return !r.Reached, err
	}), nil
}

func shared(d decide) func() decide { return func() decide { return d } }

// costs are what is measured of a limiter in process.
type costs struct {
	// quiet is the nanoseconds of a decision when there is one caller, and nothing else on its core.
	quiet float64
	// rate is decisions a second with a caller on each core, and busy nanoseconds of processor time for each.
	rate, busy float64
	// memory is the bytes of each key, with the key.
	memory float64
}

// compareLocals prints what decisions in process cost with a few and with many keys.
func compareLocals(ctx context.Context, out io.Writer, rounds int, length time.Duration) error {
	for _, n := range []int{1000, 1_000_000} {
		fmt.Fprintf(out, "\nIn process, %d keys, medians of %d rounds of %s\n\n", n, rounds, length)
		fmt.Fprintln(out, "| limiter | ns | decisions/s on all cores | CPU ns on all cores | B/key |")
		fmt.Fprintln(out, "|---|---:|---:|---:|---:|")
		keys := localKeys(n)
		measured := make([][]costs, len(locals))
		for range rounds {
			for i, l := range locals {
				c, err := measureLocal(ctx, l, keys, length)
				if err != nil {
					return fmt.Errorf("measuring %s: %w", l.name, err)
				}
				measured[i] = append(measured[i], c)
			}
		}
		for i, l := range locals {
			fmt.Fprintf(out, "| %s | %.0f | %.0f | %.0f | %.0f |\n", l.name,
				median(measured[i], func(c costs) float64 { return c.quiet }),
				median(measured[i], func(c costs) float64 { return c.rate }),
				median(measured[i], func(c costs) float64 { return c.busy }),
				median(measured[i], func(c costs) float64 { return c.memory }))
		}
	}
	return ctx.Err()
}

// localKeys gives keys of 50 bytes, one after the other in memory: those of a request were just made.
func localKeys(n int) []string {
	var all strings.Builder
	for i := range n {
		fmt.Fprintf(&all, "weir:3f1c8a:{shop/17}:%028x", i)
	}
	keys := make([]string, n)
	for i := range keys {
		keys[i] = all.String()[50*i : 50*i+50]
	}
	return keys
}

// measureLocal opens a limiter for one round: the garbage of each is its own.
func measureLocal(ctx context.Context, l local, keys []string, length time.Duration) (costs, error) {
	before := heapSize()
	open, err := l.open(len(keys))
	if err != nil {
		return costs{}, err
	}
	d := open()
	for _, key := range keys {
		// A limiter that keeps its keys is one that keeps their bytes.
		if _, err := d(ctx, strings.Clone(key)); err != nil {
			return costs{}, err
		}
	}
	c := costs{memory: (float64(heapSize()) - float64(before)) / float64(len(keys))}
	if c.quiet, err = quiet(ctx, d, keys, length); err != nil {
		return costs{}, err
	}
	start, used := time.Now(), processorTime()
	decisions, err := onAllCores(ctx, open, keys, length)
	if err != nil {
		return costs{}, err
	}
	c.rate = float64(decisions) / time.Since(start).Seconds()
	c.busy = float64(processorTime()-used) / float64(decisions)
	return c, nil
}

// slice is so short that nothing else comes between most of them.
const slice = 1000

// quiet takes a decision from the first tenth of the slices, when sorted by how long they took.
func quiet(ctx context.Context, d decide, keys []string, length time.Duration) (float64, error) {
	var took []time.Duration
	first := rand.IntN(len(keys)) //nolint:gosec // Nobody has to guess it.
	for end := time.Now().Add(length); len(took) == 0 || time.Now().Before(end); {
		start := time.Now()
		if err := askSlice(ctx, d, keys, first); err != nil {
			return 0, err
		}
		took = append(took, time.Since(start))
		first += slice
	}
	slices.Sort(took)
	return float64(took[len(took)/10]) / slice, nil
}

// askSlice asks for one key after the other. What limiters keep of them has another order.
func askSlice(ctx context.Context, d decide, keys []string, first int) error {
	for i := range slice {
		if _, err := d(ctx, keys[(first+i)%len(keys)]); err != nil {
			return err
		}
	}
	return nil
}

// onAllCores has a caller on each core ask for so long, and gives how many decisions there were.
func onAllCores(ctx context.Context, open func() decide, keys []string, length time.Duration) (int, error) {
	callers := runtime.GOMAXPROCS(0)
	counts, errs := make([]int, callers), make([]error, callers)
	end := time.Now().Add(length)
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			d := open()
			first := i * len(keys) / callers
			for counts[i] == 0 || time.Now().Before(end) {
				if errs[i] = askSlice(ctx, d, keys, first+counts[i]); errs[i] != nil {
					return
				}
				counts[i] += slice
			}
		})
	}
	wg.Wait()
	sum := 0
	for i := range callers {
		if errs[i] != nil {
			return 0, errs[i]
		}
		sum += counts[i]
	}
	return sum, nil
}

func heapSize() uint64 {
	// The second one frees what the first one had to finalize.
	runtime.GC()
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// processorTime is what this process has used.
func processorTime() time.Duration {
	var usage syscall.Rusage
	// It fails for an unknown argument only.
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &usage)
	return time.Duration(usage.Utime.Nano() + usage.Stime.Nano())
}
