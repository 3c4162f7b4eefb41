// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"sync"
	"sync/atomic"

	"github.com/weir-dev/weir/internal/limiter"
)

// calm is for how many sweeps in a row no key must have come in vain for a flood to be over: a minute.
const calm = 60

// limits are those that were ever hit: as many as there are in policies. They are locked after the shards.
type limits struct {
	// most is how many keys a policy may have.
	most int64

	mu      sync.RWMutex
	numbers map[limiter.LimitID]uint32
	all     []*limit
}

// limit counts the keys of one limit.
type limit struct {
	id limiter.LimitID
	// most is how many it may have, and kept says that it is there now. Both belong to the mutex of limits.
	most int64
	kept bool
	keys atomic.Int64
	// full says that a key came in vain since it was last looked at.
	full atomic.Bool
	// told says that a flood was told of, and quiet how often it was looked at since a key came in vain. Both belong to
	// who looks.
	told  bool
	quiet int
}

func newLimits(most int) limits {
	return limits{most: int64(most), numbers: map[limiter.LimitID]uint32{}}
}

// take takes room for a key of a limit, and gives the limit's number, if there is any.
func (l *limits) take(id limiter.LimitID) (number uint32, room bool) {
	l.mu.RLock()
	number, known := l.numbers[id]
	if !known {
		l.mu.RUnlock()
		l.mu.Lock()
		number = l.add(id)
		l.mu.Unlock()
		l.mu.RLock()
	}
	defer l.mu.RUnlock()
	return number, l.all[number].take()
}

// take never lets more in than there is room for; of two that come at once for the last place, neither may get it.
func (l *limit) take() bool {
	if l.keys.Add(1) <= l.most {
		return true
	}
	l.keys.Add(-1)
	if !l.full.Load() { // To read alone is cheap for many at once.
		l.full.Store(true)
	}
	return false
}

func (l *limits) giveBack(number uint32) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	l.all[number].keys.Add(-1)
}

// add gives the number of a limit, a new one if need be.
func (l *limits) add(id limiter.LimitID) uint32 {
	number, known := l.numbers[id]
	if !known {
		number = uint32(len(l.all))
		l.numbers[id], l.all = number, append(l.all, &limit{id: id, most: l.most})
	}
	return number
}

// divide shares out the keys of each policy among its limits. Each may have one.
func (l *limits) divide(keyed []limiter.LimitID) {
	policy := func(id limiter.LimitID) limiter.LimitID { id.Limit = ""; return id }
	parts := map[limiter.LimitID]int64{}
	for _, id := range keyed {
		parts[policy(id)]++
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range l.all {
		one.kept = false
	}
	for _, id := range keyed {
		one := l.all[l.add(id)]
		one.most, one.kept = max(1, l.most/parts[policy(id)]), true
	}
}

func (l *limits) counts() []Count {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var counts []Count
	for _, one := range l.all {
		if one.kept {
			counts = append(counts, Count{ID: one.id, Keys: one.keys.Load()})
		}
	}
	return counts
}

// flood is a time in which keys of a limit share a counter because there is no room for more.
type flood struct {
	id limiter.LimitID
	// keys is how many have counters of their own.
	keys int64
	// on is false at its end.
	on bool
}

// news gives the floods that have begun or ended since the last time.
func (l *limits) news() []flood {
	l.mu.RLock()
	defer l.mu.RUnlock()
	var news []flood
	for _, one := range l.all {
		if one.turns() {
			news = append(news, flood{id: one.id, keys: one.keys.Load(), on: one.told})
		}
	}
	return news
}

// turns says whether a flood has begun or ended.
func (l *limit) turns() bool {
	l.quiet++
	if l.full.Swap(false) {
		l.quiet = 0
	}
	on := l.quiet == 0 || l.told && l.quiet < calm
	turned := on != l.told
	l.told = on
	return turned
}
