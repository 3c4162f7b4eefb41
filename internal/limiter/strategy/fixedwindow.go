// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// fixedWindow admits at most requests in each window. The windows start at the multiples of their length
// since the Unix epoch, so that all agree on them.
var fixedWindow = Strategy{
	code:     2,
	layout:   11,
	smallest: 16,
	Validate: validateRate,
	Take: func(t *Taking, state []byte, now int64, l *limiter.Limit, cost, times int64) {
		takeWindow(t, loadFixedWindow(state, now, l), now, l, cost, times)
	},
	Tell: func(said []byte, now int64, l *limiter.Limit, p Place) limiter.Verdict {
		return tellWindow(loadFixedWindow(said, now, l), now, l, p)
	},
	Amend: amendWindow,
	lives: livesWindow,
	params: func(p *[maxParams]float64, _ int64, l *limiter.Limit) {
		p[0], p[1] = float64(l.Requests), float64(l.Window.Microseconds())
	},
	lend: func(l *limiter.Limit, ahead time.Duration) Terms { return lendOf(l, l.Window, ahead) },
	ends: endsWindow,
	lua: `local requests, window = ...
local finish = now - now % window + window
local latest = now + window + GRACE
` + windowLua,
	amendLua: amendWindowLua,
}

func loadFixedWindow(state []byte, now int64, l *limiter.Limit) window {
	length := l.Window.Microseconds()
	return loadWindow(state, now, now-now%length+length, now+length+grace)
}

// windowLua is the rule of all windows that don't slide. The current one ends at finish, and latest is when one
// may end that a clock which was set back a little is waited for.
//
// The state is the end of the window and what was taken in it, as two doubles.
const windowLua = `return function(state, cost, times, counter)
  local finish, count, moved = finish, 0, false
  if state then
    local stored, taken = read('<dd', state, 7)
    if stored > now then
      count = taken
      -- A clock that was set back a little is waited for: the window would else be counted twice.
      if stored > finish and stored <= latest then finish = stored end
      -- Into any other window goes the whole count, so that a change never gives anything.
      moved = stored ~= finish
    end
  end
  local admitted = times
  if cost > 0 then
    admitted = floor((requests - count) / cost)
    if admitted < 0 then admitted = 0 elseif admitted > times then admitted = times end
  end
  local taken = admitted * cost
  if taken == 0 and not moved then return admitted, state end
  return admitted, write('<BI5dd', LAYOUT, keep(counter, finish - now), finish, count + taken), true
end`

// window is one that doesn't slide.
type window struct {
	finish, count int64
	// moved says that it is not the one that the state is of.
	moved bool
}

// loadWindow is the first part of windowLua in Go.
func loadWindow(state []byte, now, finish, latest int64) window {
	w := window{finish: finish}
	if len(state) == 0 {
		return w
	}
	end, taken := unpack(state)
	if stored := int64(end); stored > now {
		w.count = int64(taken)
		if stored > finish && stored <= latest {
			w.finish = stored
		}
		w.moved = stored != w.finish
	}
	return w
}

// takeWindow is the second part of windowLua in Go.
func takeWindow(t *Taking, w window, now int64, l *limiter.Limit, cost, times int64) {
	t.Admitted = fitting(l.Requests-w.count, cost, times)
	taken := t.Admitted * cost
	if taken == 0 && !w.moved {
		return
	}
	t.Next = pack(t.Next, float64(w.finish), float64(w.count+taken))
	t.TTL = w.finish - now
}

// fitting gives how many requests of a cost fit into what is left.
func fitting(left, cost, times int64) int64 {
	if cost == 0 {
		return times
	}
	return min(max(0, left)/cost, times)
}

func tellWindow(w window, now int64, l *limiter.Limit, p Place) limiter.Verdict {
	v := limiter.Verdict{
		Allowed:    p.Allowed,
		Remaining:  max(0, l.Requests-w.count+p.later()),
		ResetAfter: wait(float64(w.finish - now)),
		Receipt:    w.finish,
	}
	switch {
	case p.Allowed:
	case p.Cost > l.Requests:
		v.RetryAfter = limiter.Never
	default:
		v.RetryAfter = v.ResetAfter
	}
	return v
}

// endsWindow is for receipts that are the end of the window.
func endsWindow(_ *limiter.Limit, receipt int64) int64 { return receipt }

// amendWindowLua gives back to all windows that don't slide.
const amendWindowLua = `return function(state, cost, receipt, _, counter)
  local finish, count = read('<dd', state, 7)
  -- What was taken in another window is gone with it.
  if finish <= now or finish ~= receipt then return nil end
  return write('<BI5dd', LAYOUT, keep(counter, finish - now), finish, max(0, count - cost))
end`

// amendWindow is amendWindowLua in Go.
func amendWindow(t *Taking, state []byte, now int64, _ *limiter.Limit, c Charge) {
	end, count := unpack(state)
	finish := int64(end)
	if finish <= now || finish != c.Receipt {
		return
	}
	t.Next = pack(t.Next, end, max(0, count-float64(c.Cost)))
	t.TTL = finish - now
}
