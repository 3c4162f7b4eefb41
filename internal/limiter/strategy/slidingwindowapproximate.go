// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"math"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// slidingWindowApproximate admits at most 2 * requests in any window, and seldom more than requests: it takes
// what was admitted in the previous window on the clock as if it had been spread evenly. A whole burst at its
// end was not.
//
// Its state is the window, its end, and what was taken in the previous and the current one, as four doubles.
var slidingWindowApproximate = Strategy{
	code:     4,
	layout:   13,
	smallest: 32,
	Validate: validateRate,
	Take:     takeSlidingWindowApproximate,
	Tell:     tellSlidingWindowApproximate,
	Amend:    amendSlidingWindowApproximate,
	lives:    func(l *limiter.Limit) time.Duration { return 2 * l.Window },
	params: func(p *[maxParams]float64, _ int64, l *limiter.Limit) {
		p[0], p[1] = float64(l.Requests), float64(l.Window.Microseconds())
	},
	// What is counted grows less until the window on the clock ends: what fits now, fits later.
	lend: func(l *limiter.Limit, ahead time.Duration) Terms { return gaining(lendOf(l, l.Window, ahead)) },
	ends: endsWindow,
	lua: `local requests, window = ...
local finish = now - now % window + window

-- What the previous window still counts, when so much is left of the current one.
local function weigh(previous, left, window) return previous * (min(left, window) / window) end

-- Gives the end of the window, what was taken in the previous and the current one, and whether that is not
-- where the state has it.
local function load(state)
  if not state then return finish, 0, 0, false end
  local length, stored, previous, current = read('<dddd', state, 7)
  if stored <= now then
    stored, previous, current = stored + length, current, 0
  end
  if stored <= now then return finish, 0, 0, false end
  -- A clock that was set back a little is waited for: the window would else be counted twice.
  if length == window and stored - window - now <= GRACE then return stored, previous, current, false end
  -- Into any other window goes the whole count, so that a change never gives anything.
  local count = ceil(weigh(previous, stored - now, length) + current)
  -- On a clock that was set back far the previous window weighs as much again as it did at first. More than fits was
  -- never counted.
  if length == window then count = min(count, requests) end
  return finish, 0, count, true
end

return function(state, cost, times, counter)
  local finish, previous, current, moved = load(state)
  local admitted = times
  if cost > 0 then
    local past = weigh(previous, finish - now, window)
    -- A quotient is rounded: it is a guess.
    if times > 1 then admitted = min(times, max(0, floor((requests - past - current) / cost))) end
    while admitted > 0 and past + (current + (admitted - 1) * cost) + cost > requests + TOLERANCE do admitted = admitted - 1 end
    while admitted < times and past + (current + admitted * cost) + cost <= requests + TOLERANCE do admitted = admitted + 1 end
  end
  local taken = admitted * cost
  if taken == 0 and not moved then return admitted, state end
  local expiry = keep(counter, finish + window - now)
  return admitted, write('<BI5dddd', LAYOUT, expiry, window, finish, previous, current + taken), true
end`,
	amendLua: `local requests, window = ...
return function(state, cost, receipt, _, counter)
  local length, finish, previous, current = read('<dddd', state, 7)
  if length ~= window or finish + length <= now then return nil end
  if receipt == finish then
    current = max(0, current - cost)
  elseif receipt + length == finish then
    previous = max(0, previous - cost)
  else
    return nil
  end
  local expiry = keep(counter, finish + length - now)
  return write('<BI5dddd', LAYOUT, expiry, length, finish, previous, current)
end`,
}

func takeSlidingWindowApproximate(t *Taking, state []byte, at int64, l *limiter.Limit, cost, times int64) {
	now := float64(at)
	w := loadWindows(state, at, l)
	moved := w.moved
	for t.Admitted < times && (cost == 0 || w.count(now)+float64(cost) <= float64(l.Requests)+tolerance) {
		t.Admitted++
		w.current += float64(cost)
		moved = moved || cost > 0
	}
	if !moved {
		return
	}
	t.Next = pack(t.Next, w.length, w.finish, w.previous, w.current)
	t.TTL = int64(w.finish + w.length - now)
}

func tellSlidingWindowApproximate(said []byte, at int64, l *limiter.Limit, p Place) limiter.Verdict {
	now, requests := float64(at), float64(l.Requests)
	w := loadWindows(said, at, l)
	w.current -= float64(p.later())
	remaining := math.Floor(max(0, requests-w.count(now)+tolerance))
	reset := w.finish
	if remaining < requests {
		reset = w.fits(requests, remaining+1)
	}
	v := limiter.Verdict{
		Allowed:    p.Allowed,
		Remaining:  int64(remaining),
		ResetAfter: wait(reset - now),
		Receipt:    int64(w.finish),
	}
	switch {
	case p.Allowed:
	case p.Cost > l.Requests:
		v.RetryAfter = limiter.Never
	default:
		v.RetryAfter = wait(w.fits(requests, float64(p.Cost)) - now)
	}
	return v
}

// windows are the current window on the clock and the one before it.
type windows struct {
	length, finish, previous, current float64
	// moved says that they are not where the state has them.
	moved bool
}

// loadWindows gives what a state says now, in the windows of a limit.
func loadWindows(state []byte, at int64, l *limiter.Limit) windows {
	now, length := float64(at), l.Window.Microseconds()
	empty := windows{length: float64(length), finish: float64(at - at%length + length)}
	if len(state) == 0 {
		return empty
	}
	var w windows
	w.length, w.finish = unpack(state)
	w.previous, w.current = unpack(state[16:])
	if w.finish <= now {
		w.finish, w.previous, w.current = w.finish+w.length, w.current, 0
	}
	if w.finish <= now {
		return empty
	}
	if w.length == empty.length && w.finish-w.length-now <= grace {
		return w
	}
	empty.current, empty.moved = math.Ceil(w.count(now)), true
	if w.length == empty.length {
		empty.current = min(empty.current, float64(l.Requests))
	}
	return empty
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

func amendSlidingWindowApproximate(t *Taking, state []byte, at int64, l *limiter.Limit, c Charge) {
	now, cost, receipt := float64(at), float64(c.Cost), float64(c.Receipt)
	length, finish := unpack(state)
	previous, current := unpack(state[16:])
	if length != float64(l.Window.Microseconds()) || finish+length <= now {
		return
	}
	switch receipt {
	case finish:
		current = max(0, current-cost)
	case finish - length:
		previous = max(0, previous-cost)
	default:
		return
	}
	t.Next = pack(t.Next, length, finish, previous, current)
	t.TTL = int64(finish + length - now)
}
