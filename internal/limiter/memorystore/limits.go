// SPDX-License-Identifier: Apache-2.0

package memorystore

import (
	"slices"
	"sync"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// limits are those that were ever hit: as many as there are in policies. They are locked after the shards, by
// requests alone that have a counter come or go, or share one.
type limits struct {
	// max is what the counters of each may weigh.
	max int

	mu      sync.Mutex
	numbers map[limiter.LimitID]uint32
	all     []limit
}

// limit is what the counters of one limit have in common.
type limit struct {
	// weight is that of all counters, without those that are shared.
	weight int
	// shared are the counters of the keys that have none of their own. A request can hit one limit more than
	// once, for different targets: its second hit has the second of them.
	shared []*strategy.Counter
}

// perWeight is how many bytes the state of a counter may have for each counter that it counts as: enough for a
// ring, which is the longest that doesn't grow with its limit but for a queue with holes.
const perWeight = 320

// weightOf gives as how many counters one counts that may get as long as its limit has it.
func weightOf(l *limiter.Limit) uint16 {
	return uint16((strategy.MaxState(l) + perWeight - 1) / perWeight)
}

// haveRoom says whether a limit may have one more counter. One it may have in any case.
func (l *limits) haveRoom(of *limit, weight uint16) bool {
	return of.weight == 0 || of.weight+int(weight) <= l.max
}

// number gives the index in all of a limit.
func (l *limits) number(id limiter.LimitID) uint32 {
	n, ok := l.numbers[id]
	if !ok {
		n = uint32(len(l.all))
		l.numbers[id], l.all = n, append(l.all, limit{})
	}
	return n
}

// sharing says whether keys without a counter have taken something that still counts. With a counter of its
// own such a key could take as much again.
func (l *limit) sharing(now int64) bool {
	return slices.ContainsFunc(l.shared, func(c *strategy.Counter) bool { return c.Expires > now })
}

// share gives the counter that hits[i] has with others.
func (l *limit) share(hits []limiter.Hit, i int) *strategy.Counter {
	nth := 0
	for _, h := range hits[:i] {
		if h.ID == hits[i].ID {
			nth++
		}
	}
	for len(l.shared) <= nth {
		l.shared = append(l.shared, &strategy.Counter{})
	}
	return l.shared[nth]
}
