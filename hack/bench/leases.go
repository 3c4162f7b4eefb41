// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/guard"
	"github.com/weir-dev/weir/internal/limiter/memorystore"
)

// hot is a limit that nobody reaches, leased for as short as can be.
var hot = limiter.Limit{
	Algorithm: limiter.TokenBucket,
	Requests:  1_000_000_000,
	Window:    time.Second,
	Burst:     1_000_000_000,
	Lease:     10 * time.Millisecond,
}

const (
	hotKeys    = 10
	hotCallers = 64
)

// compareLeases prints what it costs to decide on leases, beside deciding in process and in Redis.
func compareLeases(ctx context.Context, out io.Writer, rounds int, length time.Duration) error {
	server, stop, err := launch()
	if err != nil {
		return err
	}
	defer stop()
	store, err := weirStore(server)
	if err != nil {
		return err
	}
	leases := guard.NewLeases(guard.DenyCache(store))
	running, end := context.WithCancel(ctx)
	var runs sync.WaitGroup
	runs.Go(func() { leases.Run(running) })
	defer runs.Wait()
	defer end()

	b := &bench{length: length, redis: redis.NewClient(&redis.Options{Addr: server.Addr})}
	for name, s := range map[string]limiter.Store{
		inProcess:              memorystore.New(memorystore.Options{}),
		"weir, Leased at 10ms": leases,
		"weir, Exact":          store,
	} {
		b.entrants = append(b.entrants, entrant{name: name, decide: decideOn(s, hot), keys: localKeys(hotKeys)})
	}
	results, err := b.turns(ctx, rounds, hotCallers)
	if err != nil {
		return err
	}
	printLeases(out, results)
	c := leases.Counts()
	fmt.Fprintf(out, "\n%.4f of the decisions on leases were in process\n", float64(c.Local)/float64(c.Local+c.Stored))
	return nil
}

// inProcess is what leases are compared with.
const inProcess = "in process"

func printLeases(out io.Writer, results map[string]figures) {
	base := results[inProcess].rate
	fmt.Fprintf(out, "\n%d keys, %d callers\n\n", hotKeys, hotCallers)
	fmt.Fprintln(out, "| counting | decisions/s | of those in process | p50 us | p99 us | calls of Redis / decision |")
	fmt.Fprintln(out, "|---|---:|---:|---:|---:|---:|")
	for _, name := range []string{inProcess, "weir, Leased at 10ms", "weir, Exact"} {
		f := results[name]
		fmt.Fprintf(out, "| %s | %.0f | %.2f | %.1f | %.1f | %.6f |\n", name, f.rate, f.rate/base, f.p50, f.p99, f.trips)
	}
}
