// SPDX-License-Identifier: Apache-2.0

package limiter_test

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

var errAway = errors.New("the store is away")

// model is a store that keeps a book of all slots, permits and other charges, by the clock of a bubble. Whose they
// are it knows by the policy of the hits.
type model struct {
	// trips are how the calls of Take fare, by who makes them and the algorithm of the first hit.
	trips map[string]map[limiter.Algorithm]trip
	// deaf stores do nothing that isn't a decision.
	deaf bool

	mu   sync.Mutex
	book []*charge
	told map[string][]told
}

// trip is how a call fares: how long the question and the answer are under way, and whether one of them is lost.
type trip struct {
	There, Back          time.Duration
	LostThere, LostAfter bool
}

// charge is a line in the book.
type charge struct {
	limiter.Charge
	// at is the time of a slot, and until the end of a permit.
	at, until time.Time
	// free charges don't count any more.
	free bool
	// unknown charges are those that nobody was told of.
	unknown bool
	// refunds is how often it was to be given back, and late whether it was a permit that had expired.
	refunds int
	late    bool
}

// told is a verdict, and when it arrived.
type told struct {
	hit     limiter.Hit
	verdict limiter.Verdict
	at      time.Time
}

func (m *model) Take(_ context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	who := hits[0].ID.Policy
	trip := m.trips[who][hits[0].Limit.Algorithm]
	time.Sleep(trip.There)
	if trip.LostThere {
		return nil, errAway
	}
	verdicts := m.decide(hits, trip.LostAfter)
	time.Sleep(trip.Back)
	if trip.LostAfter {
		return nil, errAway
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for i, v := range verdicts {
		m.told[who] = append(m.told[who], told{hits[i], v, time.Now()})
	}
	return verdicts, nil
}

func (m *model) decide(hits []limiter.Hit, unknown bool) []limiter.Verdict {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	verdicts := make([]limiter.Verdict, len(hits))
	for i, h := range hits {
		if verdicts[i] = m.verdict(h, now); !verdicts[i].Allowed && !h.Shadow {
			return verdicts
		}
	}
	for i, h := range hits {
		if !verdicts[i].Allowed || h.Cost == 0 {
			continue
		}
		c := &charge{at: now.Add(verdicts[i].Wait), until: now.Add(h.Limit.Window), unknown: unknown}
		verdicts[i].Receipt = c.at.UnixNano()
		if h.Limit.Algorithm != limiter.LeakyBucketQueue {
			verdicts[i].Receipt = int64(len(m.book))
		}
		c.Charge = limiter.Charge{Hit: h, Receipt: verdicts[i].Receipt}
		m.book = append(m.book, c)
	}
	return verdicts
}

// verdict says whether a hit fits. Of all algorithms but two it is whether there was less than the limit ever.
func (m *model) verdict(h limiter.Hit, now time.Time) limiter.Verdict {
	var counted int64
	for _, c := range m.counted(h.Key) {
		switch h.Limit.Algorithm {
		case limiter.LeakyBucketQueue:
			counted += count(c.at.After(now))
		case limiter.Concurrency:
			counted += count(c.until.After(now))
		default:
			counted++
		}
	}
	if h.Limit.Algorithm == limiter.LeakyBucketQueue {
		wait := m.firstFree(h, now).Sub(now)
		if wait <= h.Limit.MaxDelay && counted < h.Limit.MaxQueue {
			return limiter.Verdict{Allowed: true, Wait: wait}
		}
	} else if counted+h.Cost <= h.Limit.Requests {
		return limiter.Verdict{Allowed: true}
	}
	return limiter.Verdict{RetryAfter: time.Millisecond}
}

func count(yes bool) int64 {
	if yes {
		return 1
	}
	return 0
}

// firstFree gives the first slot from now on that keeps its distance from all others.
func (m *model) firstFree(h limiter.Hit, now time.Time) time.Time {
	distance := h.Limit.Window / time.Duration(h.Limit.Requests)
	at := now
	for moved := true; moved; {
		moved = false
		for _, c := range m.counted(h.Key) {
			if at.Sub(c.at).Abs() < distance {
				at, moved = c.at.Add(distance), true
			}
		}
	}
	return at
}

// counted gives the charges of a key that count.
func (m *model) counted(key string) []*charge {
	var all []*charge
	for _, c := range m.book {
		if c.Hit.Key == key && !c.free {
			all = append(all, c)
		}
	}
	return all
}

// find gives the charge with a receipt. A slot that was given back can be somebody else's with the same receipt.
func (m *model) find(sought limiter.Charge) *charge {
	var found *charge
	for _, c := range m.book {
		if c.Charge == sought && (found == nil || found.refunds > 0) {
			found = c
		}
	}
	return found
}

func (m *model) Refund(_ context.Context, charges []limiter.Charge) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for _, sought := range charges {
		c := m.find(sought)
		c.refunds++
		c.late = c.Hit.Limit.Algorithm == limiter.Concurrency && !c.until.After(now)
		// What is left of a slot that is over is the distance to the next.
		c.free = !m.deaf && (c.Hit.Limit.Algorithm != limiter.LeakyBucketQueue || c.at.After(now))
	}
	if m.deaf {
		return errAway
	}
	return nil
}

func (m *model) Renew(_ context.Context, charges []limiter.Charge) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.deaf {
		return errAway
	}
	now := time.Now()
	for _, sought := range charges {
		if c := m.find(sought); !c.free && c.until.After(now) {
			c.until = now.Add(c.Hit.Limit.Window)
		}
	}
	return nil
}
