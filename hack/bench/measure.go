// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"time"
)

// figures are what is measured of a limiter.
type figures struct {
	// rate is decisions a second, of all callers together.
	rate float64
	// p50 and p99 are microseconds that a decision takes.
	p50, p99 float64
	// busy is microseconds of processor time of Redis for each decision.
	busy float64
	// trips is calls of scripts for each decision.
	trips float64
	// refused and undone are the shares of the requests that were refused, and that got no decision.
	refused, undone float64
}

// tally is what one caller saw.
type tally struct {
	waits           []time.Duration
	refused, undone int
}

// measure has so many callers ask for the length of a slot.
func (b *bench) measure(ctx context.Context, e entrant, callers int, keys []string) (figures, error) {
	if err := b.redis.FlushAll(ctx).Err(); err != nil {
		return figures{}, fmt.Errorf("emptying Redis: %w", err)
	}
	// The connections are there, and the script, before it counts.
	ask(ctx, e, callers, keys, b.length/6)
	before, err := b.busy(ctx)
	if err != nil {
		return figures{}, err
	}
	calls, err := b.calls(ctx)
	if err != nil {
		return figures{}, err
	}
	start := time.Now()
	all := ask(ctx, e, callers, keys, b.length)
	elapsed := time.Since(start)
	after, err := b.busy(ctx)
	if err != nil {
		return figures{}, err
	}
	callsAfter, err := b.calls(ctx)
	if err != nil {
		return figures{}, err
	}
	if err := ctx.Err(); err != nil {
		return figures{}, err
	}
	if len(all.waits) == 0 {
		return figures{}, errors.New("there was no decision at all")
	}
	slices.Sort(all.waits)
	decisions, asked := float64(len(all.waits)), float64(len(all.waits)+all.undone)
	return figures{
		rate:    decisions / elapsed.Seconds(),
		p50:     microseconds(all.waits[len(all.waits)/2]),
		p99:     microseconds(all.waits[len(all.waits)*99/100]),
		busy:    microseconds(after-before) / decisions,
		trips:   float64(callsAfter-calls) / decisions,
		refused: float64(all.refused) / asked,
		undone:  float64(all.undone) / asked,
	}, nil
}

// ask has all callers ask for so long, for one random key after the other.
func ask(ctx context.Context, e entrant, callers int, keys []string, length time.Duration) tally {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	time.AfterFunc(length, cancel)
	tallies := make([]tally, callers)
	var wg sync.WaitGroup
	for i := range tallies {
		wg.Go(func() { tallies[i] = askOn(ctx, e, keys) })
	}
	wg.Wait()
	var all tally
	for _, t := range tallies {
		all.waits = append(all.waits, t.waits...)
		all.refused += t.refused
		all.undone += t.undone
	}
	return all
}

// askOn asks until ctx is done. The requests themselves are never canceled.
func askOn(ctx context.Context, e entrant, keys []string) tally {
	var t tally
	asking := context.WithoutCancel(ctx)
	for ctx.Err() == nil {
		key := keys[rand.IntN(len(keys))] //nolint:gosec // Nobody has to guess it.
		start := time.Now()
		allowed, err := e.decide(asking, key)
		switch {
		case err != nil:
			t.undone++
			continue
		case !allowed:
			t.refused++
		}
		t.waits = append(t.waits, time.Since(start))
	}
	return t
}

// busy is the processor time that Redis has used.
func (b *bench) busy(ctx context.Context) (time.Duration, error) {
	info, err := b.redis.InfoMap(ctx, "cpu").Result()
	if err != nil {
		return 0, fmt.Errorf("asking Redis for its processor time: %w", err)
	}
	var sum float64
	for _, name := range []string{"used_cpu_sys", "used_cpu_user"} {
		seconds, err := strconv.ParseFloat(info["CPU"][name], 64)
		if err != nil {
			return 0, fmt.Errorf("reading %s: %w", name, err)
		}
		sum += seconds
	}
	return time.Duration(sum * float64(time.Second)), nil
}

// calls is how many calls of scripts Redis has had.
func (b *bench) calls(ctx context.Context) (int, error) {
	info, err := b.redis.InfoMap(ctx, "commandstats").Result()
	if err != nil {
		return 0, fmt.Errorf("asking Redis for its calls: %w", err)
	}
	text, ok := info["Commandstats"]["cmdstat_evalsha"]
	if !ok {
		return 0, nil
	}
	var calls int
	if _, err := fmt.Sscanf(text, "calls=%d", &calls); err != nil {
		return 0, fmt.Errorf("reading the calls of scripts in %q: %w", text, err)
	}
	return calls, nil
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
