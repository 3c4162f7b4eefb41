// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
)

// three are limits that nobody reaches, each of another strategy.
var three = []limiter.Limit{
	{Algorithm: limiter.TokenBucket, Requests: 1_000_000, Window: time.Second, Burst: 1_000_000},
	{Algorithm: limiter.FixedWindow, Requests: 1_000_000_000, Window: time.Hour},
	{Algorithm: limiter.SlidingWindowRing, Requests: 1_000_000_000, Window: time.Minute},
}

const (
	together = "all three"
	// limitedCallers ride in calls of some 64 requests.
	limitedCallers = 112
)

// compareLimits prints what three limits of one request cost Redis, beside each of them alone.
func compareLimits(ctx context.Context, out io.Writer, rounds int, length time.Duration) error {
	server, stop, err := launch()
	if err != nil {
		return err
	}
	defer stop()
	store, err := weirStore(server)
	if err != nil {
		return err
	}
	b := &bench{length: length, redis: redis.NewClient(&redis.Options{Addr: server.Addr})}
	for _, l := range three {
		b.entrants = append(b.entrants, entrant{name: string(l.Algorithm), decide: decideOn(store, l), keys: localKeys(mostKeys)})
	}
	b.entrants = append(b.entrants, entrant{name: together, decide: decideTogether(store, three), keys: localKeys(mostKeys)})
	results, err := b.turns(ctx, rounds, limitedCallers)
	if err != nil {
		return err
	}
	printLimits(out, results)
	return nil
}

// decideTogether decides each request by all limits, which have a counter each.
func decideTogether(store limiter.Store, limits []limiter.Limit) decide {
	return func(ctx context.Context, key string) (bool, error) {
		hits := make([]limiter.Hit, len(limits))
		for i, l := range limits {
			hits[i] = limiter.Hit{Key: key + string(l.Algorithm), Limit: l, Cost: 1}
		}
		verdicts, err := store.Take(ctx, hits)
		if err != nil {
			return false, err
		}
		return !slices.ContainsFunc(verdicts, func(v limiter.Verdict) bool { return !v.Allowed }), nil
	}
}

func printLimits(out io.Writer, results map[string]figures) {
	base := results[string(three[0].Algorithm)].busy
	fmt.Fprintf(out, "\nThree limits in one request: %d keys, %d callers\n\n", mostKeys, limitedCallers)
	fmt.Fprintln(out, "| limits | decisions/s | requests / call | Redis CPU us | of the first's |")
	fmt.Fprintln(out, "|---|---:|---:|---:|---:|")
	for _, l := range three {
		printLimit(out, string(l.Algorithm), results[string(l.Algorithm)], base)
	}
	printLimit(out, together, results[together], base)
}

func printLimit(out io.Writer, name string, f figures, base float64) {
	fmt.Fprintf(out, "| %s | %.0f | %.1f | %.2f | %.2f |\n", name, f.rate, 1/f.trips, f.busy, f.busy/base)
}
