// SPDX-License-Identifier: Apache-2.0

// Command bench measures limiters side by side, those that count in Redis on one redis-server, and prints tables.
//
// They take turns in short rounds, so that whatever else the machine does falls on all of them, and each figure
// is the median of its rounds. It is a module of its own, to keep the others out of ours.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/redistest"
)

// callers are how many goroutines ask at once.
var callers = []int{1, 4, 16, 64, 256}

// yardstick is the contestant that the others are compared with.
const yardstick = "redis_rate"

func main() {
	rounds := flag.Int("rounds", 5, "how many rounds each figure is the median of")
	length := flag.Duration("length", 300*time.Millisecond, "how long a contestant is measured in a round")
	leases := flag.Bool("leases", false, "measure leases alone, which is not part of the rest")
	limits := flag.Bool("limits", false, "measure several limits in one request alone")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	measure := run
	switch {
	case *leases:
		measure = compareLeases
	case *limits:
		measure = compareLimits
	}
	if err := measure(ctx, os.Stdout, *rounds, *length); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, rounds int, length time.Duration) error {
	if err := compareLocals(ctx, out, rounds, length); err != nil {
		return err
	}
	if err := compareInRedis(ctx, out, rounds, length); err != nil {
		return err
	}
	return compareLimits(ctx, out, rounds, length)
}

// compareInRedis prints how limiters do that all count in one Redis.
func compareInRedis(ctx context.Context, out io.Writer, rounds int, length time.Duration) error {
	server, stop, err := launch()
	if err != nil {
		return err
	}
	defer stop()
	entrants, err := enter(ctx, server)
	if err != nil {
		return err
	}
	b := &bench{entrants: entrants, length: length, redis: redis.NewClient(&redis.Options{Addr: server.Addr})}
	for _, keys := range []int{10_000, 10} {
		results, err := b.compare(ctx, keys, rounds)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "\n%d keys, medians of %d rounds of %s\n\n", keys, rounds, length)
		printTable(out, entrants, results)
	}
	return nil
}

// launch launches a Redis, and gives what ends it.
func launch() (*redistest.Server, func(), error) {
	dir, err := os.MkdirTemp("", "weir-bench")
	if err != nil {
		return nil, nil, fmt.Errorf("making a folder for Redis: %w", err)
	}
	server, err := redistest.Launch(dir)
	if err != nil {
		_ = os.RemoveAll(dir)
		return nil, nil, err
	}
	return server, func() {
		server.Kill()
		_ = os.RemoveAll(dir)
	}, nil
}

// bench measures its entrants in turns.
type bench struct {
	entrants []entrant
	length   time.Duration
	redis    *redis.Client
}

// slot is one row of a table.
type slot struct {
	callers int
	name    string
}

// compare measures all entrants with so many keys, at every number of callers.
func (b *bench) compare(ctx context.Context, keys, rounds int) (map[slot]figures, error) {
	measured := map[slot][]figures{}
	for range rounds {
		for _, n := range callers {
			for _, e := range b.entrants {
				f, err := b.measure(ctx, e, n, e.keys[:keys])
				if err != nil {
					return nil, fmt.Errorf("measuring %s with %d callers: %w", e.name, n, err)
				}
				measured[slot{n, e.name}] = append(measured[slot{n, e.name}], f)
			}
		}
	}
	medians := map[slot]figures{}
	for s, all := range measured {
		medians[s] = medianOf(all)
	}
	return medians, nil
}

// turns measures all entrants with all their keys, at one number of callers.
func (b *bench) turns(ctx context.Context, rounds, callers int) (map[string]figures, error) {
	measured := map[string][]figures{}
	for range rounds {
		for _, e := range b.entrants {
			f, err := b.measure(ctx, e, callers, e.keys)
			if err != nil {
				return nil, fmt.Errorf("measuring %s: %w", e.name, err)
			}
			measured[e.name] = append(measured[e.name], f)
		}
	}
	medians := map[string]figures{}
	for name, all := range measured {
		medians[name] = medianOf(all)
	}
	return medians, nil
}

func medianOf(all []figures) figures {
	return figures{
		rate:    median(all, func(f figures) float64 { return f.rate }),
		p50:     median(all, func(f figures) float64 { return f.p50 }),
		p99:     median(all, func(f figures) float64 { return f.p99 }),
		busy:    median(all, func(f figures) float64 { return f.busy }),
		trips:   median(all, func(f figures) float64 { return f.trips }),
		undone:  median(all, func(f figures) float64 { return f.undone }),
		refused: median(all, func(f figures) float64 { return f.refused }),
	}
}

func median[T any](all []T, of func(T) float64) float64 {
	var values []float64
	for _, one := range all {
		values = append(values, of(one))
	}
	slices.Sort(values)
	return values[len(values)/2]
}

func printTable(out io.Writer, entrants []entrant, results map[slot]figures) {
	fmt.Fprintln(out, "| callers | limiter | decisions/s | of redis_rate's | p50 us | p99 us | Redis CPU us | refused | failed |")
	fmt.Fprintln(out, "|---:|---|---:|---:|---:|---:|---:|---:|---:|")
	for _, n := range callers {
		base := results[slot{n, yardstick}].rate
		for _, e := range entrants {
			f := results[slot{n, e.name}]
			fmt.Fprintf(out, "| %d | %s | %.0f | %.2f | %.0f | %.0f | %.2f | %.0f%% | %.1f%% |\n",
				n, e.name, f.rate, f.rate/base, f.p50, f.p99, f.busy, 100*f.refused, 100*f.undone)
		}
	}
}
