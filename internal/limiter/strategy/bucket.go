// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"encoding/binary"
	"math"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// bucketLua is the rule of all buckets: a level that rises at a steady rate up to the burst. A request is
// admitted at the level of its cost, or at a full bucket if it costs more, and takes its cost. Most is what
// a request may cost.
//
// The state is the level and when it was that, as two doubles. One double that holds a time would be
// shorter, but the times of today are 0.25 us apart as doubles, and at 3 million a second that meters a
// third too much.
const bucketLua = `local requests, window, burst, most = ...
local rate = requests / window
return function(state, cost, times, counter)
  local level, last, reset = burst, now, false
  if state then
    level, last = read('<dd', state, 7)
    if last <= now then
      level, last = level + (now - last) * rate, now
    elseif last - now > GRACE then
      -- A clock that was set back gives nothing, and is waited for only if it is a little.
      last, reset = now, true
    end
    if level > burst then level = burst end
  end
  local admitted = times
  if cost > most then
    admitted = 0
  elseif cost > 0 then
    local need = cost < burst and cost or burst
    if times > 1 or level + TOLERANCE < need then
      -- A quotient is rounded: it is a guess.
      admitted = min(times, max(0, floor((level + TOLERANCE - need) / cost) + 1))
      while admitted > 0 and level - (admitted - 1) * cost + TOLERANCE < need do admitted = admitted - 1 end
      while admitted < times and level - admitted * cost + TOLERANCE >= need do admitted = admitted + 1 end
    end
  end
  local taken = admitted * cost
  if taken == 0 and not reset then return admitted, state end
  level = level - taken
  local expiry = keep(counter, (burst - level) / rate + (last - now))
  return admitted, write('<BI5dd', LAYOUT, expiry, level, last), true
end`

// tolerance is how much may be missing, so that who waits for as long as told is admitted in spite of
// rounding. The level keeps it as a debt: it doesn't add up.
const tolerance = 1e-6

// bucket is what a state says of a bucket now.
type bucket struct {
	level, last, rate, burst float64
	// reset says that the clock was set back too far to be waited for.
	reset bool
}

// loadBucket is the first part of bucketLua in Go. The conversion keeps the compiler from fusing the multiplication
// with the addition, which Lua doesn't.
func loadBucket(state []byte, at int64, l *limiter.Limit, burst int64) bucket {
	now := float64(at)
	b := bucket{level: float64(burst), last: now, rate: float64(l.Requests) / float64(l.Window.Microseconds()), burst: float64(burst)}
	if len(state) == 0 {
		return b
	}
	level, last := unpack(state)
	if last <= now {
		level += float64((now - last) * b.rate)
	} else if b.reset = last-now > grace; !b.reset {
		b.last = last
	}
	b.level = min(level, b.burst)
	return b
}

// need is the level at which a cost is admitted.
func (b bucket) need(cost float64) float64 { return min(cost, b.burst) }

// takeBucket is the second part of bucketLua in Go.
func takeBucket(t *Taking, b bucket, now, units, most, times int64) {
	cost := float64(units)
	for t.Admitted < times && (units == 0 || units <= most && b.level-float64(t.Admitted*units)+tolerance >= b.need(cost)) {
		t.Admitted++
	}
	taken := t.Admitted * units
	if taken == 0 && !b.reset {
		return
	}
	b.level -= float64(taken)
	t.Next = pack(t.Next, b.level, b.last)
	t.TTL = b.fills(now)
}

// fills gives how long it takes until the bucket is full.
func (b bucket) fills(now int64) int64 {
	return int64(math.Ceil(min(longest, (b.burst-b.level)/b.rate+(b.last-float64(now)))))
}

// tellBucket makes a verdict.
func tellBucket(b bucket, now, most int64, p Place) limiter.Verdict {
	b.level += float64(p.later())
	remaining := math.Floor(max(0, b.level+tolerance))
	owed := remaining
	if remaining == 0 {
		owed = 1 - b.level
	}
	v := limiter.Verdict{
		Allowed:    p.Allowed,
		Remaining:  int64(remaining),
		ResetAfter: b.after(owed, now),
		Receipt:    int64(b.last),
	}
	switch {
	case p.Allowed:
	case p.Cost > most:
		v.RetryAfter = limiter.Never
	default:
		v.RetryAfter = b.after(b.need(float64(p.Cost))-b.level, now)
	}
	return v
}

// after gives how long it takes to gain so much.
func (b bucket) after(units float64, now int64) time.Duration {
	return wait(min(longest, math.Ceil(units/b.rate)+(b.last-float64(now))))
}

// amendBucketLua raises the level by the cost, less what the bucket has gained since the charge: had it not
// been charged it might have been full, and gained nothing. Others may have borrowed as well, and so no level that
// it had tells that it was not. Given back in full, a burst could be had twice.
const amendBucketLua = `local requests, window, burst = ...
local rate = requests / window
return function(state, cost, receipt, _, counter)
  local level, last = read('<dd', state, 7)
  local lost = max(0, (last - receipt) * rate)
  level = min(burst, level + max(0, cost - lost))
  local expiry = keep(counter, max(0, (burst - level) / rate + (last - now)))
  return write('<BI5dd', LAYOUT, expiry, level, last)
end`

// amendBucket is amendBucketLua in Go.
func amendBucket(t *Taking, state []byte, now int64, l *limiter.Limit, burst int64, c Charge) {
	b := bucket{rate: float64(l.Requests) / float64(l.Window.Microseconds()), burst: float64(burst)}
	b.level, b.last = unpack(state)
	lost := max(0, float64((b.last-float64(c.Receipt))*b.rate))
	b.level = min(b.burst, b.level+max(0, float64(c.Cost)-lost))
	t.Next = pack(t.Next, b.level, b.last)
	t.TTL = max(0, b.fills(now))
}

// pack appends doubles, as struct.pack does with one d for each after '<'.
func pack(dst []byte, values ...float64) []byte {
	for _, v := range values {
		dst = binary.LittleEndian.AppendUint64(dst, math.Float64bits(v))
	}
	return dst
}

// unpack reads the first two doubles of a state.
func unpack(state []byte) (a, b float64) {
	return math.Float64frombits(binary.LittleEndian.Uint64(state)), math.Float64frombits(binary.LittleEndian.Uint64(state[8:]))
}
