// SPDX-License-Identifier: Apache-2.0

package strategy

import "github.com/weir-dev/weir/internal/limiter"

// fixedWindow admits at most requests in each window. The windows start at the multiples of their length
// since the Unix epoch, so that all agree on them.
var fixedWindow = Strategy{
	code:     2,
	layout:   2,
	Validate: validateRate,
	Take:     takeFixedWindow,
	GiveBack: giveBackWindow,
	params: func(_ int64, l limiter.Limit) []int64 {
		return []int64{l.Requests, l.Window.Microseconds()}
	},
	lua: `return function(state, now, cost, requests, window)
  local finish = now - now % window + window
  return window_until(finish, now + window + GRACE, state, now, cost, requests)
end`,
	giveBackLua: giveBackWindowLua,
}

func takeFixedWindow(dst, state []byte, now int64, l limiter.Limit, cost int64) (limiter.Verdict, []byte, int64) {
	window := l.Window.Microseconds()
	finish := now - now%window + window
	return takeWindowUntil(finish, now+window+grace, dst, state, now, l, cost)
}

// windowLua is the rule of all windows that don't slide. The current one ends at finish, and latest is when one
// may end that a clock which was set back a little is waited for.
//
// The state is the end of the window and what was taken in it, as two doubles.
const windowLua = `local function window_until(finish, latest, state, now, cost, requests)
  local count, moved = 0, false
  if state then
    local stored, taken = struct.unpack('<dd', state)
    if stored > now then
      count = taken
      -- A clock that was set back a little is waited for: the window would else be counted twice.
      if stored > finish and stored <= latest then finish = stored end
      -- Into any other window goes the whole count, so that a change never gives anything.
      moved = stored ~= finish
    end
  end

  local allowed = cost == 0 or count + cost <= requests
  local retry = 0
  if cost > requests then
    retry = -1
  elseif not allowed then
    retry = finish - now
  end
  if allowed then count = count + cost end
  local next
  if moved or allowed and cost > 0 then next = struct.pack('<dd', finish, count) end
  return allowed, max(0, requests - count), retry, finish - now, next, finish - now + SLACK
end
`

// giveBackWindowLua gives back to all windows that don't slide.
const giveBackWindowLua = `function(state, now, cost, receipt)
  local finish, count = struct.unpack('<dd', state)
  -- What was taken in another window is gone with it.
  if finish <= now or finish ~= struct.unpack('<d', receipt) then return nil end
  return struct.pack('<dd', finish, max(0, count - cost)), finish - now + SLACK
end`

// takeWindowUntil is windowLua in Go.
func takeWindowUntil(end, last int64, dst, state []byte, at int64, l limiter.Limit, units int64) (limiter.Verdict, []byte, int64) {
	finish, latest, now := float64(end), float64(last), float64(at)
	cost, requests := float64(units), float64(l.Requests)
	count, moved := 0.0, false
	if len(state) > 0 {
		if stored, taken := unpack(state); stored > now {
			count = taken
			if stored > finish && stored <= latest {
				finish = stored
			}
			moved = stored != finish
		}
	}

	v := limiter.Verdict{Allowed: cost == 0 || count+cost <= requests}
	if cost > requests {
		v.RetryAfter = limiter.Never
	} else if !v.Allowed {
		v.RetryAfter = wait(finish - now)
	}
	if v.Allowed {
		count += cost
	}
	v.Remaining = int64(max(0, requests-count))
	v.ResetAfter = wait(finish - now)
	if !moved && (!v.Allowed || cost == 0) {
		return v, nil, 0
	}
	return v, pack(dst, finish, count), int64(finish-now) + slack
}

// giveBackWindow is giveBackWindowLua in Go.
func giveBackWindow(dst, state []byte, at int64, _ limiter.Limit, cost int64, receipt []byte) ([]byte, int64) {
	finish, count := unpack(state)
	charged, _ := unpack(receipt)
	if finish <= float64(at) || finish != charged {
		return nil, 0
	}
	return pack(dst, finish, max(0, count-float64(cost))), int64(finish) - at + slack
}
