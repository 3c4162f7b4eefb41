// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"encoding/binary"

	"github.com/weir-dev/weir/internal/limiter"
)

// slidingWindowRing admits at most requests in any window. It counts in slots, each a part of the window, and
// adds up all slots that the window reaches into, the oldest one as a whole: it may refuse for up to a slot
// longer than it had to, and never admits too much. Whoever takes all that it gets, gets requests in each
// window and a slot.
//
// Its state is the window and the number of the oldest slot, as two doubles, and what was taken in that slot
// and in those up to the newest, in 4 bytes each. They are at most the slots of a window and one more.
var slidingWindowRing = Strategy{
	code:     3,
	layout:   3,
	Validate: validateRate,
	Take:     takeSlidingWindowRing,
	GiveBack: giveBackSlidingWindowRing,
	params: func(_ int64, l limiter.Limit) []int64 {
		return []int64{l.Requests, l.Window.Microseconds()}
	},
	lua: `-- Slots of 100 ms, but 10 to 60 of them. A window is exactly so many; they differ by a microsecond.
local function slots_of(window) return min(60, max(10, floor(window / 100000))) end
local function slot_at(time, window, slots)
  return floor(time / window) * slots + floor(time % window * slots / window)
end
local function start_of(slot, window, slots)
  return floor(slot / slots) * window + ceil(slot % slots * window / slots)
end

local function sum(counts)
  local total = 0
  for i = 1, #counts do total = total + counts[i] end
  return total
end

-- Gives the window that a state is of, the oldest slot that still counts, and the counts from there on.
local function read(state, now)
  local window, first = struct.unpack('<dd', state)
  local slots = slots_of(window)
  local gone = max(0, slot_at(now, window, slots) - slots - first)
  local left = max(0, (#state - 16) / 4 - gone)
  local counts = {struct.unpack('<' .. string.rep('I4', left), state, #state - 4 * left + 1)}
  counts[left + 1] = nil
  return window, first + gone, counts
end

-- Gives the oldest slot, the counts from there on, their sum, and whether they are not where they were.
local function load(state, now, window, slots)
  local current = slot_at(now, window, slots)
  if not state then return current, {}, 0, false end
  local length, first, counts = read(state, now)
  local total = sum(counts)
  if total == 0 then return current, {}, 0, false end
  -- A clock that was set back a little is waited for.
  local ahead = start_of(first + #counts - 1, length, slots_of(length)) - now
  if length == window and ahead <= GRACE then return first, counts, total, false end
  -- Into other slots goes the whole count at once, so that a change never gives anything.
  return current, {total}, total, true
end

return function(state, now, cost, requests, window)
  local slots = slots_of(window)
  local first, counts, total, moved = load(state, now, window, slots)
  local current = max(slot_at(now, window, slots), first + #counts - 1)
  local function until_gone(slot) return start_of(slot + slots + 1, window, slots) - now end

  local allowed = cost == 0 or total + cost <= requests
  local retry = 0
  if cost > requests then
    retry = -1
  elseif not allowed then
    local last, freed = 0, 0
    while freed < total + cost - requests do
      last = last + 1
      freed = freed + counts[last]
    end
    retry = until_gone(first + last - 1)
  end
  local next
  if allowed then total = total + cost end
  if moved or allowed and cost > 0 then
    for i = #counts + 1, current - first + 1 do counts[i] = 0 end
    if allowed then counts[#counts] = counts[#counts] + cost end
    next = struct.pack('<dd' .. string.rep('I4', #counts), window, first, unpack(counts))
  end
  local oldest = 1
  while counts[oldest] == 0 do oldest = oldest + 1 end
  local reset = until_gone(first + oldest - 1)
  return allowed, max(0, requests - total), retry, reset, next, until_gone(current) + SLACK
end`,
	giveBackLua: `function(state, now, cost, receipt)
  local window, first = struct.unpack('<dd', state)
  local as, start = struct.unpack('<dd', receipt)
  local number, charged = (#state - 16) / 4, start + (#receipt - 16) / 4 - 1
  local slots = min(60, max(10, floor(window / 100000)))
  local gone = first + number + slots
  local ttl = floor(gone / slots) * window + ceil(gone % slots * window / slots) - now
  if as ~= window or charged < first or charged >= first + number or ttl <= 0 then return nil end
  local place = 16 + 4 * (charged - first)
  local count = struct.pack('<I4', max(0, struct.unpack('<I4', state, place + 1) - cost))
  return string.sub(state, 1, place) .. count .. string.sub(state, place + 5), ttl + SLACK
end`,
}

func takeSlidingWindowRing(dst, state []byte, now int64, l limiter.Limit, cost int64) (limiter.Verdict, []byte, int64) {
	r, moved := loadRing(state, now, slotsOf(l.Window.Microseconds()))
	current, total := max(r.at(now), r.newest()), r.total()

	v := limiter.Verdict{Allowed: cost == 0 || cost <= l.Requests-total}
	if cost > l.Requests {
		v.RetryAfter = limiter.Never
	} else if !v.Allowed {
		v.RetryAfter = wait(float64(r.gone(r.freeing(total+cost-l.Requests)) - now))
	}
	taken := int64(0)
	if v.Allowed {
		taken = cost
	}
	var next []byte
	if moved || taken > 0 {
		next = r.add(dst, current, taken)
		r.counts = next[len(dst)+16:]
	}
	v.Remaining = max(0, l.Requests-total-taken)
	v.ResetAfter = wait(float64(r.gone(r.oldest()) - now))
	return v, next, r.gone(current) - now + slack
}

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
	first  int64
	counts []byte
}

// loadRing gives what a state says now, in these slots, and whether that is not where the state has it.
func loadRing(state []byte, now int64, s slots) (r ring, moved bool) {
	if len(state) > 0 {
		r = readRing(state, now)
	}
	total := r.total()
	if total == 0 {
		return ring{slots: s, first: s.at(now)}, false
	}
	if r.window == s.window && r.start(r.newest())-now <= grace {
		return r, false
	}
	return ring{s, s.at(now), binary.LittleEndian.AppendUint32(nil, uint32(total))}, true
}

// wholeRing gives all that is in a state, in the slots that it was written in.
func wholeRing(state []byte) ring {
	window, first := unpack(state)
	return ring{slotsOf(int64(window)), int64(first), state[16:]}
}

// readRing gives what still counts of a state.
func readRing(state []byte, now int64) ring {
	r := wholeRing(state)
	gone := max(0, r.at(now)-r.number-r.first)
	r.first += gone
	r.counts = r.counts[4*min(gone, r.len()):]
	return r
}

func (r ring) len() int64 { return int64(len(r.counts) / 4) }

func (r ring) count(i int64) int64 { return int64(binary.LittleEndian.Uint32(r.counts[4*i:])) }

func (r ring) newest() int64 { return r.first + r.len() - 1 }

func (r ring) total() int64 {
	var sum int64
	for i := range r.len() {
		sum += r.count(i)
	}
	return sum
}

// freeing gives the slot with which at least so many units are gone.
func (r ring) freeing(units int64) int64 {
	i := int64(0)
	for units -= r.count(i); units > 0; units -= r.count(i) {
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

// add takes more in the slot current, and gives the state.
func (r ring) add(dst []byte, current, units int64) []byte {
	dst = pack(dst, float64(r.window), float64(r.first))
	dst = append(dst, r.counts...)
	for range current - r.newest() {
		dst = append(dst, 0, 0, 0, 0)
	}
	last := dst[len(dst)-4:]
	binary.LittleEndian.PutUint32(last, binary.LittleEndian.Uint32(last)+uint32(units))
	return dst
}

func giveBackSlidingWindowRing(dst, state []byte, now int64, _ limiter.Limit, cost int64, receipt []byte) ([]byte, int64) {
	r, charged := wholeRing(state), wholeRing(receipt)
	ttl := r.gone(r.newest()) - now
	slot := charged.newest() - r.first
	if charged.window != r.window || slot < 0 || slot >= r.len() || ttl <= 0 {
		return nil, 0
	}
	next := append(dst, state...)
	binary.LittleEndian.PutUint32(next[len(dst)+16+4*int(slot):], uint32(max(0, r.count(slot)-cost)))
	return next, ttl + slack
}
