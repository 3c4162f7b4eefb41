// SPDX-License-Identifier: Apache-2.0

package memorystore

import (
	"slices"
	"sync"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// shard holds the counters of a part of the keys.
type shard struct {
	mu    sync.Mutex
	table table
	// hand is the slot that a sweep looks at next, and 0 after the first one. It goes downwards, so that what is moved
	// to where one is removed was looked at before.
	hand uint32
	desk desk
}

// desk is where a request is decided that has locked this shard first. It keeps its buffers for the next one.
type desk struct {
	now       int64
	evaluator strategy.Evaluator
	// seats are those of hits with a counter in a table, and counters those of all hits.
	seats    []seat
	counters []*strategy.Counter
	limits   *limits
	// limitsLocked says that this request has locked the limits.
	limitsLocked bool
}

// seat holds a counter until it goes back to its slot.
type seat struct {
	table   *table
	slot    uint32
	counter strategy.Counter
}

// begin makes room for a request. No seat moves later, because counters point to them.
func (d *desk) begin(now int64, hits int) {
	d.now = now
	d.seats = slices.Grow(d.seats[:0], hits)
	d.counters = d.counters[:0]
}

// seat finds the counter of hits[i], a new one if need be, or one that it shares.
func (d *desk) seat(t *table, n name, hits []limiter.Hit, i int) {
	slot := t.find(n)
	if slot == 0 {
		d.lockLimits()
		number, weight := d.limits.number(hits[i].ID), weightOf(&hits[i].Limit)
		l := &d.limits.all[number]
		if !d.limits.haveRoom(l, weight) || l.sharing(d.now) {
			d.counters = append(d.counters, l.share(hits, i))
			return
		}
		l.weight += int(weight)
		slot = t.add(n, number, weight)
	}
	d.seats = d.seats[:len(d.seats)+1]
	s := &d.seats[len(d.seats)-1]
	s.table, s.slot = t, slot
	d.weigh(t.at(slot), &hits[i].Limit)
	t.load(slot, &s.counter)
	d.counters = append(d.counters, &s.counter)
}

// weigh has a counter count for more whose limit was edited and lets it get longer than it could.
func (d *desk) weigh(s *slot, l *limiter.Limit) {
	if s.size != long {
		return
	}
	if weight := weightOf(l); weight > s.weight {
		d.lockLimits()
		d.limits.all[s.limit].weight += int(weight - s.weight)
		s.weight = weight
	}
}

// end keeps what has become of the counters.
func (d *desk) end() {
	for i := range d.seats {
		s := &d.seats[i]
		s.table.keep(s.slot, &s.counter)
	}
}

// sweep forgets those of the next few counters that have expired. Two looked at for each hit are more than
// a hit can add, so the expired never pile up, and no request pays for many.
func (d *desk) sweep(s *shard) {
	for range min(2, s.table.length) {
		if s.hand == 0 {
			s.hand = s.table.length
		}
		i := s.hand
		s.hand--
		swept := s.table.at(i)
		if swept.expires > d.now {
			continue
		}
		d.lockLimits()
		d.limits.all[swept.limit].weight -= int(swept.weight)
		s.table.remove(i)
	}
}

func (d *desk) lockLimits() {
	if !d.limitsLocked {
		d.limits.mu.Lock()
		d.limitsLocked = true
	}
}

func (d *desk) unlockLimits() {
	if d.limitsLocked {
		d.limitsLocked = false
		d.limits.mu.Unlock()
	}
}
