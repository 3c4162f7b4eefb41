// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"encoding/binary"
	"fmt"

	"github.com/weir-dev/weir/internal/limiter"
)

// maxEntries bounds the limits whose state has an entry for each request.
const maxEntries = 10_000

// slidingWindowLog admits at most requests in any window, and refuses nothing that would fit: it knows when it
// admitted what.
//
// Its state is an element of 8 bytes for each admitted request: when that was, in microseconds modulo 2^48, and the
// sum of all costs up to it, modulo 2^16. So what was taken in a window is the difference of two sums, and to find
// where the window starts, or when enough will have left it, takes a few steps. The sums start from the first element,
// whose request has left, or never was.
//
// In Redis it is a LIST of blocks of 7 elements, the last of which can have fewer: only the blocks that are needed are
// read or written, and only whole ones are thrown away. Each element by itself would take 2 bytes more. A block has
// no room for a layout: what is a list is this.
//
// Another limit counts the same elements, for its own window; but those that had left the window of the last request
// that was admitted may be gone. An element whose time is ahead of a clock that was set back a little is waited for:
// what is admitted meanwhile counts for as long as it does. A charge can be refunded while at most 256 came after it.
var slidingWindowLog = Strategy{
	code:     9,
	layout:   9,
	smallest: 32,
	Validate: validateSlidingWindowLog,
	Take:     takeSlidingWindowLog,
	Tell:     tellSlidingWindowLog,
	Amend:    amendSlidingWindowLog,
	lives:    livesWindow,
	// Elements that have left the window go a block at a time.
	largest: func(l *limiter.Limit) int { return elementSize * (blockLength + int(l.Requests)) },
	params: func(p *[maxParams]float64, _ int64, l *limiter.Limit) {
		p[0], p[1] = float64(l.Requests), float64(l.Window.Microseconds())
	},
	openLua: `local key = KEYS[...]
local listed = redis.pcall('LLEN', key)
-- What is no list gives an error.
if type(listed) ~= 'number' or listed == 0 then return nil end
local newest = call('LINDEX', key, -1)
return {key = key, listed = listed, held = listed, from = 0, size = 7 * (listed - 1) + #newest / 8,
  blocks = {[listed - 1] = newest}}`,
	lua: `local requests, window = ...
` + logLua + `
-- Gives a log in which nothing is, but what is taken now.
local function start(total)
  local log = {listed = 0, held = 0, from = 0, size = 1, blocks = {[0] = pack(now - OLDEST, 0)}}
  if total > 0 then log = append(log, 0, now, total, 1) end
  return log
end

-- Gives the log, the last element that has left the window, the sum of all others, when what is taken now is taken,
-- and whether it is another log than it was.
local function load(log)
  if not log or log.from == log.size - 1 then return start(0), 0, 0, now, false end
  local age, sum = element(log, log.size - 1)
  if age >= window then return start(0), 0, 0, now, false end
  local gone = seek(log, log.from, function(i) return element(log, i) < window end) - 1
  local _, before = element(log, gone)
  local total = (sum - before) % 65536
  -- A clock that was set back far isn't waited for: all that counts is taken now.
  if -age > GRACE then return start(total), 0, total, now, true end
  return log, gone, total, now - min(age, 0), false
end

-- Gives when so much will have left the window.
local function leaves(log, gone, units)
  local _, before = element(log, gone)
  local i = seek(log, gone, function(i)
    local _, sum = element(log, i)
    return (sum - before) % 65536 >= units
  end)
  return now - element(log, i) + window
end

return function(log, cost, times, counter)
  local gone, total, at, moved
  log, gone, total, at, moved = load(log)
  local admitted = times
  if cost > 0 then
    admitted = floor((requests - total) / cost)
    if admitted < 0 then admitted = 0 elseif admitted > times then admitted = times end
  end
  local taken = admitted * cost
  if taken > 0 then
    log, total = append(renew(log, gone), gone, at, cost, admitted), total + taken
  end
  local more, fits = now + window, 0
  if total > 0 then more = now - element(log, gone + 1) + window end
  if total + cost > requests and cost <= requests then fits = leaves(log, gone, total + cost - requests) end
  local said = write('<BI5dddd', LAYOUT, 0, total, at, more, fits)
  if taken > 0 or moved then keep(counter, at + window - now) end
  return admitted, log, taken > 0 or moved, said
end`,
	amendLua: `local _, window = ...
` + logLua + `
-- Gives elements with sums that are lower by a cost.
local function lower(elements, cost)
  local lowered = {}
  for at = 1, #elements, 56 do
    local n = min(7, (#elements - at + 1) / 8)
    local format = '<' .. string.rep('c6I2', n)
    local parts = {read(format, elements, at)}
    for i = 2, 2 * n, 2 do parts[i] = (parts[i] - cost) % 65536 end
    lowered[#lowered + 1] = write(format, unpack(parts, 1, 2 * n))
  end
  return table.concat(lowered)
end

-- Gives the log without an element that took a cost.
local function without(log, i, cost)
  local younger = {}
  for b = floor(i / 7), floor((log.size - 1) / 7) do
    younger[#younger + 1] = sub(block(log, b), 1, (log.size - 7 * b) * 8)
  end
  younger[1] = sub(younger[1], i % 7 * 8 + 9)
  return extend(log, log.from, i, lower(table.concat(younger), cost))
end

return function(log, cost, receipt, _, counter)
  local last = log.size - 1
  local i, oldest = last, max(log.from + 1, last - 256)
  -- Most blocks are too young as a whole.
  while i - i % 7 > oldest and now - element(log, i - i % 7) > receipt do i = i - i % 7 - 1 end
  for i = i, oldest, -1 do
    local age, sum = element(log, i)
    local _, before = element(log, i - 1)
    if age >= window or now - age < receipt then return nil end
    if now - age == receipt and (sum - before) % 65536 == cost then
      local rest = without(log, i, cost)
      keep(counter, last - 1 > rest.from and max(0, window - element(rest, last - 1)) or 0)
      return rest
    end
  end
end`,
}

// logLua has what both rules of a log need.
//
// A log is a table. Its blocks are numbered as in the list that Redis has under its key, which are those below listed;
// below held, they are as Redis has them, and only some of them are read already. Elements are numbered through all
// blocks, from the start of the first block that is kept; size is the number of the next one. A log shares its blocks
// with the one that it came from: those of a log in which too much was tried have elements that are not in it.
const logLua = `local OLDEST = 70368744177664

local function pack(time, sum)
  return write('<I4I2I2', time % 4294967296, floor(time / 4294967296) % 65536, sum)
end

local function block(log, b)
  local elements = log.blocks[b]
  if not elements then
    elements = call('LINDEX', log.key, b)
    log.blocks[b] = elements
  end
  return elements
end

-- Gives how long ago an element was, and the sum of all costs up to it.
local function element(log, i)
  local low, high, sum = read('<I4I2I2', block(log, floor(i / 7)), i % 7 * 8 + 1)
  local age = (now - low - high * 4294967296) % 281474976710656
  if age >= 140737488355328 then age = age - 281474976710656 end
  return age, sum
end

-- Gives the first element after one that is so. All that follow are so, and the last one is.
local function seek(log, low, is)
  local last, high, step = log.size - 1, low + 1, 1
  while high < last and not is(high) do
    low, step = high, 2 * step
    high = min(high + step, last)
  end
  while high - low > 1 do
    local middle = floor((low + high) / 2)
    if is(middle) then high = middle else low = middle end
  end
  return high
end

local function save(log, counter)
  local key, ttl = KEYS[counter], expiries[counter] - second
  local first, last = log.from / 7, floor((log.size - 1) / 7)
  if log.listed == 0 then call('DEL', key) end
  if log.renewed and log.renewed < log.held then call('LSET', key, log.renewed, log.blocks[log.renewed]) end
  for b = max(first, log.held), last do
    local elements = sub(log.blocks[b], 1, (log.size - 7 * b) * 8)
    if b < log.listed then
      call('LSET', key, b, elements)
    else
      call('RPUSH', key, elements)
    end
  end
  if first > 0 or last < log.listed - 1 then call('LTRIM', key, first, last) end
  if log.listed == 0 then
    call('EXPIRE', key, ttl)
  else
    -- Another limit may have it live for longer.
    call('EXPIRE', key, ttl, 'GT')
  end
end

-- Gives the log from the block of an element up to an element, and others after that.
local function extend(log, from, size, others)
  local b, blocks = floor(size / 7), log.blocks
  local held, elements = min(log.held, b), others
  if size % 7 > 0 then elements = sub(block(log, b), 1, size % 7 * 8) .. others end
  for at = 1, #elements, 56 do
    blocks[b] = sub(elements, at, at + 55)
    b = b + 1
  end
  return {key = log.key, listed = log.listed, held = held, renewed = log.renewed, from = from - from % 7,
    size = size + #others / 8, blocks = blocks, save = save}
end

-- Gives the log with the elements up to one, from the start of its block, made as old as they get that are older.
local function renew(log, last)
  local b = floor(last / 7)
  if element(log, 7 * b) <= OLDEST then return log end
  local elements = block(log, b)
  for i = 7 * b, last do
    local age, sum = element(log, i)
    if age > OLDEST then
      elements = sub(elements, 1, i % 7 * 8) .. pack(now - OLDEST, sum) .. sub(elements, i % 7 * 8 + 9)
    end
  end
  -- The log that it came from stays as it is: this may only be tried.
  local blocks = {}
  for i, others in pairs(log.blocks) do blocks[i] = others end
  blocks[b] = elements
  return {key = log.key, listed = log.listed, held = log.held, renewed = b, from = log.from, size = log.size, blocks = blocks}
end

-- Gives the log from the block of an element on, and so many more of a time and a cost.
local function append(log, from, time, cost, times)
  local _, sum = element(log, log.size - 1)
  local more = {}
  for i = 1, times do more[i] = pack(time, (sum + i * cost) % 65536) end
  return extend(log, from, log.size, table.concat(more))
end
`

func validateSlidingWindowLog(l *limiter.Limit) error {
	if err := validateRate(l); err != nil {
		return err
	}
	if l.Requests > maxEntries {
		return fmt.Errorf("requests must be at most %d, not %d", maxEntries, l.Requests)
	}
	return nil
}

const (
	// elementSize is how many bytes an element has, and blockLength how many elements a block.
	elementSize, blockLength = 8, 7
	// oldest is how old elements get, in microseconds: two years and some months, which is more than any window, and
	// less by more than any window than what looks like it is yet to come.
	oldest = 1 << 46
	// maxYounger is how many requests may have been admitted since one that is refunded. All their sums change, and
	// that must not keep Redis from others. What is older counts until it leaves.
	maxYounger = 256
)

// elements are those of a log. Their times are modulo 2^48, and so are told from now.
type elements []byte

func (e elements) last() int { return len(e)/elementSize - 1 }

func (e elements) at(i int) uint64 { return binary.LittleEndian.Uint64(e[elementSize*i:]) }

// age gives how long ago an element was.
func (e elements) age(i int, now int64) int64 {
	const above = 16
	return (now - int64(e.at(i))) << above >> above
}

// sum gives the sum of all costs up to an element.
func (e elements) sum(i int) uint16 { return uint16(e.at(i) >> 48) }

// cost gives what the elements after one, up to another, took.
func (e elements) cost(after, i int) int64 { return int64(e.sum(i) - e.sum(after)) }

// leaves gives when so much of what is after an element will have left a window.
func (e elements) leaves(after int, units, now, window int64) int64 {
	i := after + 1 + seek(e.last()-after-1, func(i int) bool { return e.cost(after, after+1+i) >= units })
	return now - e.age(i, now) + window
}

// add appends an element.
func (e elements) add(at, cost int64) elements {
	return binary.LittleEndian.AppendUint64(e, element(at, e.sum(e.last())+uint16(cost)))
}

// start appends to nothing the element that comes before all others.
func (e elements) start(now int64) elements {
	return binary.LittleEndian.AppendUint64(e, element(now-oldest, 0))
}

// element gives one of a time, which is taken modulo 2^48, and of the sum of all costs up to it.
func element(at int64, sum uint16) uint64 { return uint64(at)&(1<<48-1) | uint64(sum)<<48 }

// renew makes the elements up to one as old as they get that are older.
func (e elements) renew(last int, now int64) {
	for i := range last + 1 {
		if e.age(i, now) > oldest {
			binary.LittleEndian.PutUint64(e[elementSize*i:], element(now-oldest, e.sum(i)))
		}
	}
}

// without appends the elements but one, which took a cost.
func (e elements) without(dst []byte, i int, cost int64) elements {
	dst = append(dst, e[:elementSize*i]...)
	for j := i + 1; j <= e.last(); j++ {
		dst = binary.LittleEndian.AppendUint64(dst, e.at(j)-uint64(cost)<<48)
	}
	return dst
}

// nothing is a log in which nothing was taken. It must not be changed, and isn't kept.
var nothing = make(elements, elementSize)

// record is a log as it counts now.
type record struct {
	elements elements
	// gone is the last element that has left the window, and total what the others took.
	gone  int
	total int64
	// at is when what is taken now is taken.
	at int64
	// moved says that the elements are not those of the state.
	moved bool
}

// loadRecord gives what of a state counts now in a window.
func loadRecord(state []byte, now, window int64) record {
	e := elements(state)
	if len(e) == 0 || e.last() == 0 || e.age(e.last(), now) >= window {
		return record{elements: nothing, at: now}
	}
	gone := seek(e.last()-1, func(i int) bool { return e.age(1+i, now) < window })
	total, ahead := e.cost(gone, e.last()), max(0, -e.age(e.last(), now))
	if ahead > grace {
		return record{elements: elements{}.start(now).add(now, total), total: total, at: now, moved: true}
	}
	first := gone / blockLength * blockLength
	return record{elements: e[elementSize*first:], gone: gone - first, total: total, at: now + ahead}
}

// seek gives the first number below n that is so, or n. All that follow are so.
func seek(n int, is func(i int) bool) int {
	low, high := 0, n
	for low < high {
		if middle := (low + high) / 2; is(middle) {
			high = middle
		} else {
			low = middle + 1
		}
	}
	return low
}

func takeSlidingWindowLog(t *Taking, state []byte, now int64, l *limiter.Limit, cost, times int64) {
	window := l.Window.Microseconds()
	r := loadRecord(state, now, window)
	t.Admitted = fitting(l.Requests-r.total, cost, times)
	if taken := t.Admitted * cost; taken > 0 || r.moved {
		next := r.next(t.Next, now)
		for range taken / max(1, cost) {
			next = next.add(r.at, cost)
		}
		r.elements, r.total = next, r.total+taken
		t.Next, t.TTL = next, r.at+window-now
	}
	t.Said = r.say(t.Said, now, l, cost)
}

// next appends the elements that the next state begins with.
func (r record) next(dst []byte, now int64) elements {
	if len(r.elements) == len(nothing) {
		return elements(dst).start(now)
	}
	next := append(elements(dst), r.elements...)
	next.renew(r.gone, now)
	return next
}

// say appends what is taken, when something is taken now, when more will have left, and when a cost fits that doesn't
// fit now.
func (r record) say(dst []byte, now int64, l *limiter.Limit, cost int64) []byte {
	window := l.Window.Microseconds()
	more, fits := now+window, int64(0)
	if r.total > 0 {
		more = now - r.elements.age(r.gone+1, now) + window
	}
	if r.total+cost > l.Requests && cost <= l.Requests {
		fits = r.elements.leaves(r.gone, r.total+cost-l.Requests, now, window)
	}
	return pack(dst, float64(r.total), float64(r.at), float64(more), float64(fits))
}

func tellSlidingWindowLog(said []byte, now int64, l *limiter.Limit, p Place) limiter.Verdict {
	if len(said) == 0 {
		said = record{elements: nothing, at: now}.say(nil, now, l, p.Cost)
	}
	total, at := unpack(said)
	more, fits := unpack(said[16:])
	v := limiter.Verdict{
		Allowed:    p.Allowed,
		Remaining:  max(0, l.Requests-int64(total)+p.later()),
		ResetAfter: wait(more - float64(now)),
		Receipt:    int64(at),
	}
	switch {
	case p.Allowed:
	case p.Cost > l.Requests:
		v.RetryAfter = limiter.Never
	default:
		v.RetryAfter = wait(fits - float64(now))
	}
	return v
}

func amendSlidingWindowLog(t *Taking, state []byte, now int64, l *limiter.Limit, c Charge) {
	e, window := elements(state), l.Window.Microseconds()
	for i := e.last(); i >= max(1, e.last()-maxYounger); i-- {
		age := e.age(i, now)
		if age >= window || now-age < c.Receipt {
			return
		}
		if now-age == c.Receipt && e.cost(i-1, i) == c.Cost {
			rest := e.without(t.Next, i, c.Cost)
			if rest.last() > 0 {
				t.TTL = max(0, window-rest.age(rest.last(), now))
			}
			t.Next = rest
			return
		}
	}
}
