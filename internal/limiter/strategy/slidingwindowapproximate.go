// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"math"

	"github.com/weir-dev/weir/internal/limiter"
)

// slidingWindowApproximate admits at most 2 * requests in any window, and seldom more than requests: it takes
// what was admitted in the previous window on the clock as if it had been spread evenly. A whole burst at its
// end was not.
//
// Its state is the window, its end, and what was taken in the previous and the current one, as four doubles.
var slidingWindowApproximate = Strategy{
	code:     4,
	layout:   4,
	Validate: validateRate,
	Take:     takeSlidingWindowApproximate,
	GiveBack: giveBackSlidingWindowApproximate,
	params: func(_ int64, l limiter.Limit) []int64 {
		return []int64{l.Requests, l.Window.Microseconds()}
	},
	lua: `-- What the previous window still counts, when so much is left of the current one.
local function weigh(previous, left, window) return previous * (min(left, window) / window) end

-- Gives the end of the window, what was taken in the previous and the current one, and whether that is not
-- where the state has it.
local function load(state, now, window)
  local finish = now - now % window + window
  if not state then return finish, 0, 0, false end
  local length, stored, previous, current = struct.unpack('<dddd', state)
  if stored <= now then
    stored, previous, current = stored + length, current, 0
  end
  if stored <= now then return finish, 0, 0, false end
  -- A clock that was set back a little is waited for: the window would else be counted twice.
  if length == window and stored - window - now <= GRACE then return stored, previous, current, false end
  -- Into any other window goes the whole count, so that a change never gives anything.
  return finish, 0, ceil(weigh(previous, stored - now, length) + current), true
end

return function(state, now, cost, requests, window)
  local finish, previous, current, moved = load(state, now, window)
  -- How long it takes until so many units fit, if they don't fit now.
  local function until_fits(units)
    local left = requests - units - current
    if left >= 0 then return finish - floor(left * window / previous) - now end
    return finish + window - floor((requests - units) * window / current) - now
  end

  local count = weigh(previous, finish - now, window) + current
  local allowed = cost == 0 or count + cost <= requests + TOLERANCE
  local retry = 0
  if cost > requests then
    retry = -1
  elseif not allowed then
    retry = until_fits(cost)
  end
  if allowed then count, current = count + cost, current + cost end
  local next
  if moved or allowed and cost > 0 then next = struct.pack('<dddd', window, finish, previous, current) end
  local remaining = floor(max(0, requests - count + TOLERANCE))
  local reset = finish - now
  if remaining < requests then reset = until_fits(remaining + 1) end
  return allowed, remaining, retry, reset, next, finish + window - now + SLACK
end`,
	giveBackLua: `function(state, now, cost, receipt, requests, window)
  local length, finish, previous, current = struct.unpack('<dddd', state)
  local as, charged = struct.unpack('<dd', receipt)
  if as ~= length or finish + length <= now then return nil end
  if charged == finish then
    current = max(0, current - cost)
  elseif charged + length == finish then
    previous = max(0, previous - cost)
  else
    return nil
  end
  return struct.pack('<dddd', length, finish, previous, current), finish + length - now + SLACK
end`,
}

func takeSlidingWindowApproximate(dst, state []byte, at int64, l limiter.Limit, units int64) (limiter.Verdict, []byte, int64) {
	now, cost, requests := float64(at), float64(units), float64(l.Requests)
	w, moved := loadWindows(state, at, l.Window.Microseconds())

	count := w.count(now)
	v := limiter.Verdict{Allowed: cost == 0 || count+cost <= requests+tolerance}
	if cost > requests {
		v.RetryAfter = limiter.Never
	} else if !v.Allowed {
		v.RetryAfter = wait(w.fits(requests, cost) - now)
	}
	if v.Allowed {
		count += cost
		w.current += cost
	}
	var next []byte
	if moved || v.Allowed && cost > 0 {
		next = pack(dst, w.length, w.finish, w.previous, w.current)
	}
	remaining := math.Floor(max(0, requests-count+tolerance))
	reset := w.finish
	if remaining < requests {
		reset = w.fits(requests, remaining+1)
	}
	v.Remaining, v.ResetAfter = int64(remaining), wait(reset-now)
	return v, next, int64(w.finish+w.length-now) + slack
}

// windows are the current window on the clock and the one before it.
type windows struct{ length, finish, previous, current float64 }

// loadWindows gives what a state says now, in windows of this length, and whether that is not where the state
// has it.
func loadWindows(state []byte, at, length int64) (w windows, moved bool) {
	now, empty := float64(at), windows{length: float64(length), finish: float64(at - at%length + length)}
	if len(state) == 0 {
		return empty, false
	}
	w.length, w.finish = unpack(state)
	w.previous, w.current = unpack(state[16:])
	if w.finish <= now {
		w = windows{w.length, w.finish + w.length, w.current, 0}
	}
	if w.finish <= now {
		return empty, false
	}
	if w.length == empty.length && w.finish-w.length-now <= grace {
		return w, false
	}
	empty.current = math.Ceil(w.count(now))
	return empty, true
}

// count gives what is counted. The conversion keeps the compiler from fusing the multiplication with the
// addition, which Lua doesn't.
func (w windows) count(now float64) float64 {
	return float64(w.previous*(min(w.finish-now, w.length)/w.length)) + w.current
}

// fits gives the time when so many units fit, if they don't fit now.
func (w windows) fits(requests, units float64) float64 {
	if left := requests - units - w.current; left >= 0 {
		return w.finish - math.Floor(left*w.length/w.previous)
	}
	return w.finish + w.length - math.Floor((requests-units)*w.length/w.current)
}

func giveBackSlidingWindowApproximate(dst, state []byte, at int64, _ limiter.Limit, units int64, receipt []byte) ([]byte, int64) {
	now, cost := float64(at), float64(units)
	length, finish := unpack(state)
	previous, current := unpack(state[16:])
	as, charged := unpack(receipt)
	if as != length || finish+length <= now {
		return nil, 0
	}
	switch charged {
	case finish:
		current = max(0, current-cost)
	case finish - length:
		previous = max(0, previous-cost)
	default:
		return nil, 0
	}
	return pack(dst, length, finish, previous, current), int64(finish+length-now) + slack
}
