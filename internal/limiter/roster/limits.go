// SPDX-License-Identifier: Apache-2.0

package roster

import (
	"sync"

	"github.com/weir-dev/weir/internal/limiter"
)

// calm is for how many sweeps in a row no key must have come in vain for a flood to be over: a minute.
const calm = 60

// limits are those that were ever hit: as many as there are in policies. They are locked after the shards, when a key
// comes or goes.
type limits struct {
	// most is how many keys a policy may have.
	most int

	mu      sync.Mutex
	numbers map[limiter.LimitID]uint32
	all     []*limit
}

// limit counts the keys of one limit.
type limit struct {
	id   limiter.LimitID
	keys int
	// own is how many it may have whatever the others have. Those above that are in the pool of its policy.
	own  int
	pool *pool
	// kept says that the limit is there now.
	kept bool
	// full says that a key came in vain since it was last looked at, told that a flood was told of, and quiet how often it
	// was looked at since a key came in vain.
	full, told bool
	quiet      int
}

// pool is the part of a policy's keys that is for whichever limit needs it.
type pool struct{ keys, most int }

func newLimits(most int) limits {
	return limits{most: most, numbers: map[limiter.LimitID]uint32{}}
}

// take takes room for a key of a limit, and gives the limit's number, if there is any.
func (l *limits) take(id limiter.LimitID) (number uint32, room bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	number, known := l.numbers[id]
	if !known {
		number = l.add(id)
	}
	return number, l.all[number].take()
}

// add adds a limit, which has all keys of a policy to itself until it is told otherwise.
func (l *limits) add(id limiter.LimitID) uint32 {
	number := uint32(len(l.all))
	l.numbers[id], l.all = number, append(l.all, &limit{id: id, own: l.most, pool: new(pool)})
	return number
}

func (l *limit) take() bool {
	switch {
	case l.keys < l.own:
	case l.pool.keys < l.pool.most:
		l.pool.keys++
	default:
		l.full = true
		return false
	}
	l.keys++
	return true
}

func (l *limits) giveBack(number uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	one := l.all[number]
	if one.keys > one.own {
		one.pool.keys--
	}
	one.keys--
}

// divide shares out one half of the keys of each policy evenly among its limits. The other half is for all of them.
// Limits that are gone keep what they have, until their keys are forgotten.
func (l *limits) divide(keyed []limiter.LimitID) {
	policy := func(id limiter.LimitID) limiter.LimitID { id.Limit = ""; return id }
	parts, pools := map[limiter.LimitID]int{}, map[limiter.LimitID]*pool{}
	for _, id := range keyed {
		parts[policy(id)]++
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, one := range l.all {
		one.kept, one.own, one.pool = false, l.most, new(pool)
	}
	for _, id := range keyed {
		number, known := l.numbers[id]
		if !known {
			number = l.add(id)
		}
		n := parts[policy(id)]
		own := l.most / 2 / n
		if pools[policy(id)] == nil {
			pools[policy(id)] = &pool{most: l.most - n*own}
		}
		l.all[number].join(own, pools[policy(id)])
	}
}

// join has a limit be one of a policy.
func (l *limit) join(own int, p *pool) {
	l.kept, l.own, l.pool = true, own, p
	p.keys += max(0, l.keys-own)
}

func (l *limits) counts() []Count {
	l.mu.Lock()
	defer l.mu.Unlock()
	var counts []Count
	for _, one := range l.all {
		if one.kept {
			counts = append(counts, Count{ID: one.id, Keys: one.keys})
		}
	}
	return counts
}

// flood is a time in which keys of a limit share a counter because there is no room for more.
type flood struct {
	id limiter.LimitID
	// keys is how many have counters of their own.
	keys int
	// on is false at its end.
	on bool
}

// news gives the floods that have begun or ended since the last time.
func (l *limits) news() []flood {
	l.mu.Lock()
	defer l.mu.Unlock()
	var news []flood
	for _, one := range l.all {
		if one.turns() {
			news = append(news, flood{id: one.id, keys: one.keys, on: one.told})
		}
	}
	return news
}

// turns says whether a flood has begun or ended.
func (l *limit) turns() bool {
	l.quiet++
	if l.full {
		l.full, l.quiet = false, 0
	}
	on := l.quiet == 0 || l.told && l.quiet < calm
	turned := on != l.told
	l.told = on
	return turned
}
