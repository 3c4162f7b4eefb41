// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"encoding/binary"
	"math"

	"github.com/weir-dev/weir/internal/limiter"
)

// bucketLua is the rule of all buckets: a level that rises at a steady rate up to the burst. A request is
// admitted at the level of its cost, or at a full bucket if it costs more, and takes its cost. Most is what
// a request may cost: the burst, if it isn't given.
//
// The state is the level and when it was that, as two doubles. One double that holds a time would be
// shorter, but the times of today are 0.25 us apart as doubles, and at 3 million a second that meters a
// third too much.
const bucketLua = `local function bucket(state, now, cost, requests, window, burst, most)
  local rate, need = requests / window, min(cost, burst)
  local level, last = burst, now
  if state then level, last = struct.unpack('<dd', state) end
  -- A clock that was set back gives nothing, and is waited for only if it is a little.
  local elapsed = max(0, now - last)
  local reset = last - now > GRACE
  if now >= last or reset then last = now end
  level = min(burst, level + elapsed * rate)

  local allowed = cost == 0 or cost <= (most or burst) and level + TOLERANCE >= need
  local retry = 0
  if cost > (most or burst) then
    retry = -1
  elseif not allowed then
    retry = min(LONGEST, ceil((need - level) / rate) + (last - now))
  end
  local next, ttl
  if allowed then level = level - cost end
  if reset or allowed and cost > 0 then
    next = struct.pack('<dd', level, last)
    ttl = min(LONGEST, ceil((burst - level) / rate) + (last - now) + SLACK)
  end
  local remaining = floor(max(0, level + TOLERANCE))
  local owed = remaining
  if remaining == 0 then owed = 1 - level end
  return allowed, remaining, retry, min(LONGEST, ceil(owed / rate) + (last - now)), next, ttl
end
`

// tolerance is how much may be missing, so that who waits for as long as told is admitted in spite of
// rounding. The level keeps it as a debt: it doesn't add up.
const tolerance = 1e-6

// takeBucket is bucketLua in Go. The conversions keep the compiler from fusing a multiplication with an
// addition, which Lua doesn't.
func takeBucket(dst, state []byte, at int64, l limiter.Limit, units, capacity int64) (limiter.Verdict, []byte, int64) {
	now, cost, burst := float64(at), float64(units), float64(capacity)
	rate, need := float64(l.Requests)/float64(l.Window.Microseconds()), min(cost, burst)
	level, last := burst, now
	if len(state) > 0 {
		level, last = unpack(state)
	}
	elapsed := max(0, now-last)
	reset := last-now > grace
	if now >= last || reset {
		last = now
	}
	level = min(burst, level+float64(elapsed*rate))

	fits := units <= l.Capacity()
	v := limiter.Verdict{Allowed: cost == 0 || fits && level+tolerance >= need}
	if !fits {
		v.RetryAfter = limiter.Never
	} else if !v.Allowed {
		v.RetryAfter = wait(min(longest, math.Ceil((need-level)/rate)+(last-now)))
	}
	var next []byte
	var ttl float64
	if v.Allowed {
		level -= cost
	}
	if reset || v.Allowed && cost > 0 {
		next = pack(dst, level, last)
		ttl = min(longest, math.Ceil((burst-level)/rate)+(last-now)+slack)
	}
	remaining := math.Floor(max(0, level+tolerance))
	owed := remaining
	if remaining == 0 {
		owed = 1 - level
	}
	v.Remaining = int64(remaining)
	v.ResetAfter = wait(min(longest, math.Ceil(owed/rate)+(last-now)))
	return v, next, int64(ttl)
}

// giveBackBucketLua raises the level by the cost, less what the bucket has gained since the charge: had it not
// been charged it might have been full, and gained nothing. Others may have borrowed as well, and so no level that
// it had tells that it was not. Given back in full, a burst could be had twice.
const giveBackBucketLua = `function(state, now, cost, receipt, requests, window, burst)
  local rate = requests / window
  local level, last = struct.unpack('<dd', state)
  local _, charged = struct.unpack('<dd', receipt)
  local lost = max(0, (last - charged) * rate)
  level = min(burst, level + max(0, cost - lost))
  local ttl = min(LONGEST, max(0, ceil((burst - level) / rate) + (last - now)) + SLACK)
  return struct.pack('<dd', level, last), ttl
end`

// giveBackBucket is giveBackBucketLua in Go.
func giveBackBucket(dst, state []byte, at int64, l limiter.Limit, units, capacity int64, receipt []byte) ([]byte, int64) {
	now, cost, burst := float64(at), float64(units), float64(capacity)
	rate := float64(l.Requests) / float64(l.Window.Microseconds())
	level, last := unpack(state)
	_, charged := unpack(receipt)
	lost := max(0, float64((last-charged)*rate))
	level = min(burst, level+max(0, cost-lost))
	ttl := min(longest, max(0, math.Ceil((burst-level)/rate)+(last-now))+slack)
	return pack(dst, level, last), int64(ttl)
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
