// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"github.com/weir-dev/weir/internal/limiter"
)

// fixedWindow admits at most requests in each window. The windows start at the multiples of their length
// since the Unix epoch, so that all agree on them.
//
// Its state is the end of the window and what was taken in it, as two doubles.
var fixedWindow = Strategy{
	code:     2,
	Validate: validateRate,
	Take:     takeFixedWindow,
	GiveBack: giveBackFixedWindow,
	params: func(l limiter.Limit) []int64 {
		return []int64{l.Requests, l.Window.Microseconds()}
	},
	lua: `return function(state, now, cost, requests, window)
  local finish = now - now % window + window
  local count, moved = 0, false
  if state then
    local stored, taken = struct.unpack('<dd', state)
    if stored > now then
      count = taken
      -- A clock that was set back a little is waited for: the window would else be counted twice.
      if stored > finish and stored - window - now <= GRACE then finish = stored end
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
end`,
	giveBackLua: `function(state, now, cost, receipt)
  local finish, count = struct.unpack('<dd', state)
  -- What was taken in another window is gone with it.
  if finish <= now or finish ~= struct.unpack('<d', receipt) then return nil end
  return struct.pack('<dd', finish, max(0, count - cost)), finish - now + SLACK
end`,
}

func takeFixedWindow(dst, state []byte, at int64, l limiter.Limit, units int64) (limiter.Verdict, []byte, int64) {
	window := l.Window.Microseconds()
	finish := float64(at - at%window + window)
	now, cost, requests := float64(at), float64(units), float64(l.Requests)
	count, moved := 0.0, false
	if len(state) > 0 {
		if stored, taken := unpack(state); stored > now {
			count = taken
			if stored > finish && stored-float64(window)-now <= grace {
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

func giveBackFixedWindow(dst, state []byte, at int64, _ limiter.Limit, cost int64, receipt []byte) ([]byte, int64) {
	finish, count := unpack(state)
	charged, _ := unpack(receipt)
	if finish <= float64(at) || finish != charged {
		return nil, 0
	}
	return pack(dst, finish, max(0, count-float64(cost))), int64(finish) - at + slack
}
