// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"cmp"
	_ "embed"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// Script decides a batch of requests inside Redis, on Redis's clock. [Call] gives its keys and arguments, and
// [Verdicts] reads its reply. It is the same text in every process of one version.
var Script = assembleTake(false, false)

// Lend is [Script] for requests that others may still refuse, without shadow hits: its reply has a receipt more
// for each hit, with which [GiveBack] undoes the charge. [Receipts] reads them.
var Lend = assembleTake(false, true)

// Try is [Script] for requests that others have refused: it says what each hit would have been told, and
// charges nothing.
var Try = assembleTake(true, false)

//go:embed take.lua
var take string

// assembleTake puts the rules of the strategies before the loop over the requests.
func assembleTake(try, lend bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "local TRY, LEND = %t, %t\n", try, lend)
	b.WriteString(constants)
	b.WriteString("local widths, layouts, makers, stale = {}, {}, {}, false\n")
	b.WriteString(bucketLua)
	b.WriteString(windowLua)
	for _, s := range byCode() {
		fmt.Fprintf(&b, "widths[%d], layouts[%d], makers[%d] = %d, %d, function()\n%s\nend\n", s.code, s.code, s.code, s.width(), s.layout, s.lua)
	}
	b.WriteString(take)
	return b.String()
}

// constants are those of the rules, and the functions that they call often.
var constants = fmt.Sprintf("local LONGEST, GRACE, SLACK, TOLERANCE = %d, %d, %d, %g\n", int64(longest), int64(grace), int64(slack), tolerance) +
	"local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max\n"

// byCode gives the strategies in an order that is always the same.
func byCode() []Strategy {
	return slices.SortedFunc(maps.Values(strategies), func(s, t Strategy) int { return cmp.Compare(s.code, t.code) })
}

// Call gives the keys and the arguments with which [Script] decides the requests, one after the other. Each
// of them has to pass [Check]. Now is microseconds since the Unix epoch: the caller's time, or what [Stale] told
// it of Redis's.
func Call(now int64, requests ...[]limiter.Hit) (keys []string, args []any) {
	index := map[string]int{}
	for _, hits := range requests {
		args = append(args, len(hits))
		for _, h := range hits {
			if index[h.Key] == 0 {
				keys = append(keys, h.Key)
				index[h.Key] = len(keys)
			}
			args = appendHit(args, now, h, index[h.Key])
		}
	}
	return keys, args
}

func appendHit(args []any, now int64, h limiter.Hit, key int) []any {
	s := strategies[h.Limit.Algorithm]
	shadow := 0
	if h.Shadow {
		shadow = 1
	}
	// What is above the capacity never fits, by however much, and Lua can't tell all of it apart.
	args = append(args, key, int64(s.code), shadow, min(h.Cost, h.Limit.Capacity()+1))
	for _, p := range s.params(now, h.Limit) {
		args = append(args, p)
	}
	return args
}

// Stale says whether a reply is that the [Call] was for another time than Redis's, and gives Redis's. Nothing was
// decided or charged then.
func Stale(reply any) (now int64, stale bool) {
	if parts, ok := reply.([]any); ok && len(parts) == 1 {
		now, stale = parts[0].(int64)
	}
	return now, stale
}

// Verdicts reads the reply to a [Call] of so many hits in all. The verdicts are in the order of the hits.
func Verdicts(reply []int64, hits int) ([]limiter.Verdict, error) {
	if len(reply) != 4*hits {
		return nil, fmt.Errorf("reading the verdicts of %d hits: the reply has %d numbers, not %d", hits, len(reply), 4*hits)
	}
	verdicts := make([]limiter.Verdict, hits)
	for i := range verdicts {
		r := reply[4*i:]
		verdicts[i] = limiter.Verdict{
			Allowed:    r[0] == 1,
			Remaining:  r[1],
			RetryAfter: time.Duration(r[2]) * time.Microsecond,
			ResetAfter: time.Duration(r[3]) * time.Microsecond,
		}
		if r[2] < 0 {
			verdicts[i].RetryAfter = limiter.Never
		}
	}
	return verdicts, nil
}

// Counter is the state of one counter in process. The zero value is one from which nothing was taken.
type Counter struct {
	// Algorithm is the one that wrote State: to those with states of another layout the counter is as if nothing
	// was taken.
	Algorithm limiter.Algorithm
	// State is the same bytes as in Redis, without the layout before them.
	State []byte
	// Expires, in microseconds since the Unix epoch, is when the counter can be forgotten.
	Expires int64
}

// Evaluator decides requests in process as [Script] does in Redis. The zero value is ready to use. It keeps a
// buffer, and so is not safe for concurrent use.
type Evaluator struct {
	next []byte
}

// Decide decides a request of hits that pass [Check], counters[i] being the counter of hits[i], and no
// counter that of two hits. Now is microseconds since the Unix epoch.
func (e *Evaluator) Decide(now int64, hits []limiter.Hit, counters []*Counter) []limiter.Verdict {
	verdicts := make([]limiter.Verdict, len(hits))
	if len(hits) == 1 {
		// The only hit needs nobody's consent.
		verdicts[0] = e.keep(now, hits[0].Limit, hits[0].Cost, counters[0])
		return verdicts
	}
	admitted := true
	for i, h := range hits {
		if !h.Shadow {
			verdicts[i], _ = e.take(now, h.Limit, h.Cost, counters[i])
			admitted = admitted && verdicts[i].Allowed
		}
	}
	for i, h := range hits {
		switch {
		case h.Shadow:
		case admitted || !verdicts[i].Allowed:
			verdicts[i] = e.keep(now, h.Limit, h.Cost, counters[i])
		default:
			// It would have been charged, had no other limit refused. What remains is all there is.
			verdicts[i] = e.keep(now, h.Limit, 0, counters[i])
		}
	}
	for i, h := range hits {
		if h.Shadow && admitted {
			verdicts[i] = e.keep(now, h.Limit, h.Cost, counters[i])
		}
	}
	return verdicts
}

// keep takes the cost from the counter.
func (e *Evaluator) keep(now int64, l limiter.Limit, cost int64, c *Counter) limiter.Verdict {
	v, ttl := e.take(now, l, cost, c)
	if len(e.next) > 0 {
		c.Algorithm, c.State, c.Expires = l.Algorithm, append(c.State[:0], e.next...), now+ttl
	}
	return v
}

// take leaves the counter's next state in e.next, empty where nothing changes.
func (e *Evaluator) take(now int64, l limiter.Limit, cost int64, c *Counter) (limiter.Verdict, int64) {
	var state []byte
	s := strategies[l.Algorithm]
	if strategies[c.Algorithm].layout == s.layout && now < c.Expires {
		state = c.State
	}
	v, next, ttl := s.Take(e.next[:0], state, now, l, cost)
	e.next = append(e.next[:0], next...)
	return v, ttl
}
