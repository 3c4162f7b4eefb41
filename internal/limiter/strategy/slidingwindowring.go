// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"encoding/binary"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// slidingWindowRing admits at most requests in any window. It counts in slots, each a part of the window, and
// adds up all slots that the window reaches into, the oldest one as a whole: it may refuse for up to a slot
// longer than it had to, and never admits too much. Whoever takes all that it gets, gets requests in each
// window and a slot.
//
// Its state is the window, the number of the oldest slot and the sum of all slots, as three doubles, and what was
// taken in that slot and in those up to the newest, in 4 bytes each. They are at most the slots of a window and
// one more. The sum is there so that only the slots that go and the newest one have to be read.
var slidingWindowRing = Strategy{
	code:     3,
	layout:   12,
	smallest: ringHeader + 4,
	Validate: validateRate,
	Take:     takeSlidingWindowRing,
	Tell:     tellSlidingWindowRing,
	Amend:    amendSlidingWindowRing,
	lives: func(l *limiter.Limit) time.Duration {
		return l.Window + l.Window/time.Duration(slotsOf(l.Window.Microseconds()).number) + time.Microsecond
	},
	largest: func(l *limiter.Limit) int {
		return ringHeader + 4*(int(slotsOf(l.Window.Microseconds()).number)+1)
	},
	params: func(p *[maxParams]float64, _ int64, l *limiter.Limit) {
		p[0], p[1] = float64(l.Requests), float64(l.Window.Microseconds())
	},
	lend: func(l *limiter.Limit, ahead time.Duration) Terms {
		return gaining(lendOf(l, l.Window/time.Duration(slotsOf(l.Window.Microseconds()).number), ahead))
	},
	// What is used in the slot that it was taken in counts as if it were taken then.
	ends: func(l *limiter.Limit, receipt int64) int64 {
		return slotsOf(l.Window.Microseconds()).start(receipt + 1)
	},
	lua: slotsLua + `local requests, window = ...
local slots = slots_of(window)
local current = slot_at(now, window, slots)
local FRONT = 30

-- Gives the slots of another window, or of a clock that was set back, as one: so a change never gives anything.
local function move(total)
  if total == 0 then return current, 0, '', false end
  return current, total, write('<I4', total), true
end

-- Gives the oldest slot that still counts, the sum, the counts, and whether they are not where they were.
local function load(state)
  if not state then return move(0) end
  local length, first, total = read('<ddd', state, 7)
  local each = slots_of(length)
  local held = (#state - FRONT) / 4
  local gone = max(0, slot_at(now, length, each) - each - first)
  if gone >= held or total == 0 then return move(0) end
  if gone > 0 then
    local old = {read('<' .. string.rep('I4', gone), state, FRONT + 1)}
    for i = 1, gone do total = total - old[i] end
  end
  -- A clock that was set back a little is waited for.
  if total == 0 or length ~= window or start_of(first + held - 1, length, each) - now > GRACE then
    return move(total)
  end
  return first + gone, total, sub(state, FRONT + 1 + 4 * gone), false
end

return function(state, cost, times, counter)
  local first, total, counts, moved = load(state)
  local admitted = times
  if cost > 0 then
    admitted = floor((requests - total) / cost)
    if admitted < 0 then admitted = 0 elseif admitted > times then admitted = times end
  end
  local taken = admitted * cost
  if taken == 0 and not moved then return admitted, state end
  local missing = current - first + 1 - #counts / 4
  if missing > 0 then counts = counts .. string.rep('\0\0\0\0', missing) end
  local newest = read('<I4', counts, #counts - 3)
  counts = sub(counts, 1, -5) .. write('<I4', newest + taken)
  local expiry = keep(counter, start_of(first + #counts / 4 + slots, window, slots) - now)
  return admitted, write('<BI5ddd', LAYOUT, expiry, window, first, total + taken) .. counts, true
end`,
	amendLua: slotsLua + `local requests, window = ...
return function(state, cost, receipt, _, counter)
  local length, first, total = read('<ddd', state, 7)
  local slots = slots_of(length)
  local held = (#state - 30) / 4
  local gone = start_of(first + held + slots, length, slots)
  if length ~= window or receipt < first or receipt >= first + held or gone <= now then return nil end
  local place = 30 + 4 * (receipt - first)
  local count = read('<I4', state, place + 1)
  local back = min(count, cost)
  local expiry = keep(counter, gone - now)
  return write('<BI5ddd', LAYOUT, expiry, length, first, total - back) .. sub(state, 31, place) ..
    write('<I4', count - back) .. sub(state, place + 5)
end`,
}

// slotsLua is the type slots in Lua.
const slotsLua = `local function slots_of(window) return min(60, max(10, floor(window / 100000))) end
local function slot_at(time, window, slots)
  return floor(time / window) * slots + floor(time % window * slots / window)
end
local function start_of(slot, window, slots)
  return floor(slot / slots) * window + ceil(slot % slots * window / slots)
end
`

// slots are parts of a window that add up to it exactly, though they differ by a microsecond.
type slots struct{ window, number int64 }

// slotsOf gives slots of 100 ms, but 10 to 60 of them.
func slotsOf(window int64) slots {
	return slots{window, min(60, max(10, window/100_000))}
}

// at gives the number of the slot that a time is in, the first being that of the Unix epoch.
func (s slots) at(time int64) int64 {
	return time/s.window*s.number + time%s.window*s.number/s.window
}

func (s slots) start(slot int64) int64 {
	return slot/s.number*s.window + (slot%s.number*s.window+s.number-1)/s.number
}

// gone gives the time from which on no window reaches into the slot.
func (s slots) gone(slot int64) int64 { return s.start(slot + s.number + 1) }

// ring is what was taken in the slot first, and in those after it. The counts are as in the state, so that
// reading them allocates nothing.
type ring struct {
	slots
	first, total int64
	counts       []byte
	// moved says that they are not where the state has them.
	moved bool
}

// ringHeader is how many bytes of a state come before the counts.
const ringHeader = 24

func takeSlidingWindowRing(t *Taking, state []byte, now int64, l *limiter.Limit, cost, times int64) {
	r := loadRing(state, now, l)
	t.Admitted = fitting(l.Requests-r.total, cost, times)
	taken := t.Admitted * cost
	if taken == 0 && !r.moved {
		return
	}
	t.Next = r.add(t.Next, max(r.at(now), r.newest()), taken)
	t.TTL = wholeRing(t.Next).end() - now
}

func tellSlidingWindowRing(said []byte, now int64, l *limiter.Limit, p Place) limiter.Verdict {
	r := loadRing(said, now, l)
	total := r.total - p.later()
	v := limiter.Verdict{
		Allowed:    p.Allowed,
		Remaining:  max(0, l.Requests-total),
		ResetAfter: wait(float64(r.gone(r.oldest()) - now)),
		Receipt:    max(r.at(now), r.newest()),
	}
	switch {
	case p.Allowed:
	case p.Cost > l.Requests:
		v.RetryAfter = limiter.Never
	default:
		v.RetryAfter = wait(float64(r.gone(r.freeing(total+p.Cost-l.Requests)) - now))
	}
	return v
}

// loadRing gives what a state says now, in the slots of a limit.
func loadRing(state []byte, now int64, l *limiter.Limit) ring {
	s := slotsOf(l.Window.Microseconds())
	empty := ring{slots: s, first: s.at(now)}
	if len(state) == 0 {
		return empty
	}
	r := wholeRing(state)
	ahead := r.start(r.newest()) - now
	gone := max(0, r.at(now)-r.number-r.first)
	if gone >= r.len() {
		return empty
	}
	for i := range gone {
		r.total -= r.count(i)
	}
	r.first += gone
	r.counts = r.counts[4*gone:]
	switch {
	case r.total == 0:
		return empty
	case r.window == s.window && ahead <= grace:
		return r
	}
	// Into other slots goes the whole count, so that a change never gives anything.
	empty.total, empty.counts, empty.moved = r.total, binary.LittleEndian.AppendUint32(nil, uint32(r.total)), true
	return empty
}

// wholeRing gives all that is in a state, in the slots that it was written in.
func wholeRing(state []byte) ring {
	window, first := unpack(state)
	_, total := unpack(state[8:])
	return ring{slots: slotsOf(int64(window)), first: int64(first), total: int64(total), counts: state[ringHeader:]}
}

func (r ring) len() int64 { return int64(len(r.counts) / 4) }

func (r ring) count(i int64) int64 { return int64(binary.LittleEndian.Uint32(r.counts[4*i:])) }

func (r ring) newest() int64 { return r.first + r.len() - 1 }

// end gives the time from which on nothing of the ring counts.
func (r ring) end() int64 { return r.gone(r.newest()) }

// freeing gives the slot with which at least so many units are gone.
func (r ring) freeing(units int64) int64 {
	i := int64(0)
	for i < r.len()-1 && units > r.count(i) {
		units -= r.count(i)
		i++
	}
	return r.first + i
}

// oldest gives the oldest slot in which anything was taken: the first one if nothing was.
func (r ring) oldest() int64 {
	i := int64(0)
	for i < r.len() && r.count(i) == 0 {
		i++
	}
	return r.first + i
}

// add takes more in the slot newest, and appends the state.
func (r ring) add(dst []byte, newest, units int64) []byte {
	dst = pack(dst, float64(r.window), float64(r.first), float64(r.total+units))
	dst = append(dst, r.counts...)
	for range newest - r.newest() {
		dst = append(dst, 0, 0, 0, 0)
	}
	last := dst[len(dst)-4:]
	binary.LittleEndian.PutUint32(last, binary.LittleEndian.Uint32(last)+uint32(units))
	return dst
}

func amendSlidingWindowRing(t *Taking, state []byte, now int64, l *limiter.Limit, c Charge) {
	r := wholeRing(state)
	i := c.Receipt - r.first
	if r.window != l.Window.Microseconds() || i < 0 || i >= r.len() || r.end() <= now {
		return
	}
	back := min(r.count(i), c.Cost)
	t.Next = pack(t.Next, float64(r.window), float64(r.first), float64(r.total-back))
	t.Next = append(t.Next, r.counts...)
	binary.LittleEndian.PutUint32(t.Next[ringHeader+4*i:], uint32(r.count(i)-back))
	t.TTL = r.end() - now
}
