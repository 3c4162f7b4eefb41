// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// concurrency admits what has a permit, and has as many permits as requests. Who is done refunds its permit; one that
// nobody renews comes back by itself after the window and up to a 64th of it: its holder may have crashed. So no more
// than requests are ever out, and none is lost. When the limit is lowered, none is given until fewer are out than that.
//
// When a permit comes back is for its holder to say, so who is refused is told to try again in a second, or after the
// window if that is shorter.
//
// Its state is the last id, when it was written, how much is out, and when the first and the last permit expire at
// the soonest and the latest, as doubles. Then come the permits in the order of their ids: each is its id and when it
// expires, as doubles, and its cost in 2 bytes. An id is the time in microseconds, or one more than the last: so no
// permit has the id of an earlier one, even if the counter was lost. In Redis it is a HASH, of which only what is
// needed has to be read or written: the field of a permit is its id, and that of all else is empty.
var concurrency = Strategy{
	code:     8,
	layout:   8,
	smallest: 24,
	Validate: validateConcurrency,
	Take:     takeConcurrency,
	Tell:     tellConcurrency,
	Amend:    amendConcurrency,
	lives:    func(l *limiter.Limit) time.Duration { return l.Window + l.Window/ticks + time.Microsecond },
	largest:  func(l *limiter.Limit) int { return permitsHeader + permitSize*int(l.Requests) },
	params: func(p *[maxParams]float64, _ int64, l *limiter.Limit) {
		p[0], p[1] = float64(l.Requests), float64(l.Window.Microseconds())
	},
	openLua: `local counter = ...
local value = redis.pcall('HGET', KEYS[counter], '')
-- What is no hash gives an error.
if type(value) ~= 'string' or byte(value) ~= LAYOUT then return nil end
local p = {key = KEYS[counter], changes = {}}
local _
_, expiries[counter], p.last, p.seen, p.used, p.soonest, p.latest = read('<BI5ddddd', value)
return p`,
	lua: permitsLua + `
return function(p, cost, times, counter)
  local swept
  p, swept = load(p)
  local admitted = times
  if cost > 0 then
    admitted = floor((requests - p.used) / cost)
    if admitted < 0 then admitted = 0 elseif admitted > times then admitted = times end
  end
  local given = cost > 0 and admitted or 0
  local first, used = max(p.last + 1, now), p.used + given * cost
  local said = write('<BI5ddd', LAYOUT, 0, used, first, given)
  if given == 0 then
    if swept then keep_permits(p, counter) end
    return admitted, p, swept, said
  end
  local expires = ends()
  for id = first, first + given - 1 do p.changes[id] = write('<dI2', expires, cost) end
  p = {key = p.key, last = first + given - 1, seen = max(p.seen, now), used = used,
    soonest = min(p.soonest, expires), latest = max(p.latest, expires), changes = p.changes, save = save}
  keep_permits(p, counter)
  return admitted, p, true, said
end`,
	amendLua: permitsLua + `
local function extend(p, id, cost)
  local expires = ends()
  p.changes[id], p.soonest, p.latest = write('<dI2', expires, cost), min(p.soonest, expires), max(p.latest, expires)
end

return function(p, _, id, renew, counter)
  local swept
  p, swept = load(p)
  local entry = find(p, id)
  if not entry and not swept then return nil end
  if entry then
    local _, cost = read('<dI2', entry)
    if renew then
      extend(p, id, cost)
    else
      p.changes[id], p.used = false, p.used - cost
      if p.used == 0 then p.soonest, p.latest = LONGEST, 0 end
    end
  end
  p.seen = max(p.seen, now)
  keep_permits(p, counter)
  return p
end`,
}

// permitsLua has what both rules of permits need.
//
// The permits of a counter are a table. Those that Redis has under its key are not in it, but for the changes: they
// have by id what a permit becomes, and false for one that is gone. Changes to ids above the last are none: a request
// was tried there that was not admitted.
const permitsLua = `local requests, window = ...
local tick = floor(window / 64)

-- Gives a command all items, some at a time: it can't have any number of arguments.
local function pass(command, key, items)
  for i = 1, #items, 1000 do call(command, key, unpack(items, i, min(i + 999, #items))) end
end

-- Gives when a permit expires that is given or renewed now. Many expire together, to be looked for together.
local function ends()
  local expires = now + window
  return expires + -expires % tick
end

-- Gives all permits by id.
local function all(p)
  local entries = {}
  if p.key then
    local fields = call('HGETALL', p.key)
    for i = 1, #fields, 2 do
      if fields[i] ~= '' then entries[read('<d', fields[i])] = fields[i + 1] end
    end
  end
  for id, entry in pairs(p.changes) do
    if id <= p.last then entries[id] = entry end
  end
  return entries
end

-- Leaves out what has expired, on a clock that was set back by so much.
local function sweep(p, back)
  local swept = {key = p.key, last = p.last, seen = max(now, p.seen - back), used = 0, soonest = LONGEST, latest = 0,
    changes = {}}
  for id, entry in pairs(all(p)) do
    local expires, cost
    if entry then
      expires, cost = read('<dI2', entry)
      expires = expires - back
    end
    if entry and expires > now then
      swept.used = swept.used + cost
      swept.soonest, swept.latest = min(swept.soonest, expires), max(swept.latest, expires)
      if back > 0 or p.changes[id] then swept.changes[id] = write('<dI2', expires, cost) end
    else
      swept.changes[id] = false
    end
  end
  return swept
end

-- Gives the permits that count, and whether others were found and are to be forgotten.
local function load(p)
  if not p then return {last = 0, seen = now, used = 0, soonest = LONGEST, latest = 0, changes = {}}, false end
  -- A clock that was set back far isn't waited for: the permits last as long as if it had stood still.
  if p.seen - now > GRACE then return sweep(p, p.seen - now), true end
  if p.soonest <= now then return sweep(p, 0), true end
  return p, false
end

local function find(p, id)
  if id > p.last then return nil end
  local entry = p.changes[id]
  if entry == nil and p.key then entry = call('HGET', p.key, write('<d', id)) end
  return entry
end

local function save(p, counter)
  local key, expiry = KEYS[counter], expiries[counter]
  if not p.key then call('DEL', key) end
  local given, gone = {'', write('<BI5ddddd', LAYOUT, expiry, p.last, p.seen, p.used, p.soonest, p.latest)}, {}
  for id, entry in pairs(p.changes) do
    if entry and id <= p.last then
      given[#given + 1] = write('<d', id)
      given[#given + 1] = entry
    elseif not entry then
      gone[#gone + 1] = write('<d', id)
    end
  end
  pass('HSET', key, given)
  pass('HDEL', key, gone)
  if not p.key or extended[counter] then call('EXPIRE', key, expiry - second) end
end

-- Makes the permits the next state of a counter.
local function keep_permits(p, counter)
  keep(counter, max(0, p.latest - now))
  p.save = save
end
`

func validateConcurrency(l *limiter.Limit) error {
	switch {
	case l.Requests < 1:
		return fmt.Errorf("maxInFlight must be at least 1, not %d", l.Requests)
	case l.Requests > maxEntries:
		return fmt.Errorf("maxInFlight must be at most %d, not %d", maxEntries, l.Requests)
	}
	return validateWindow(l)
}

const (
	// permitsHeader is how many bytes of a state come before the permits, and permitSize how many each has.
	permitsHeader, permitSize = 40, 18
	// ticks is in how many parts of a window permits expire together.
	ticks = 64
	// tryAgain is when to ask again for what can be had at any time.
	tryAgain = time.Second
)

// permits are those of a counter that count now.
type permits struct {
	// last is the last id that was given, and seen the latest time at which the state was written.
	last, seen int64
	used       int64
	// soonest is no later than when the first of them expires, and latest no sooner than the last.
	soonest, latest int64
	entries         []byte
	// swept says that others were found, and are to be forgotten.
	swept bool
}

// loadPermits gives what of a state counts now.
func loadPermits(state []byte, now int64) permits {
	if len(state) == 0 {
		return permits{seen: now, soonest: longest}
	}
	last, seen := unpack(state)
	used, soonest := unpack(state[16:])
	_, latest := unpack(state[24:])
	p := permits{
		last: int64(last), seen: int64(seen), used: int64(used), soonest: int64(soonest), latest: int64(latest),
		entries: state[permitsHeader:],
	}
	switch {
	case p.seen-now > grace:
		return p.sweep(now, p.seen-now)
	case p.soonest <= now:
		return p.sweep(now, 0)
	}
	return p
}

// sweep leaves out what has expired, on a clock that was set back by so much.
func (p permits) sweep(now, back int64) permits {
	swept := permits{last: p.last, seen: max(now, p.seen-back), soonest: longest, swept: true}
	for e := p.entries; len(e) > 0; e = e[permitSize:] {
		id, expires := unpack(e)
		expires -= float64(back)
		if int64(expires) <= now {
			continue
		}
		cost := binary.LittleEndian.Uint16(e[16:])
		swept.used += int64(cost)
		swept.soonest, swept.latest = min(swept.soonest, int64(expires)), max(swept.latest, int64(expires))
		swept.entries = binary.LittleEndian.AppendUint16(pack(swept.entries, id, expires), cost)
	}
	return swept
}

// find gives where a permit is, and false if it doesn't count any more.
func (p permits) find(id int64) (at int, ok bool) {
	held := func(i int) int64 {
		return int64(math.Float64frombits(binary.LittleEndian.Uint64(p.entries[permitSize*i:])))
	}
	n := len(p.entries) / permitSize
	i := seek(n, func(i int) bool { return held(i) >= id })
	return permitSize * i, i < n && held(i) == id
}

// keep makes the permits the next state.
func (p permits) keep(t *Taking, now int64) {
	t.Next = pack(t.Next, float64(p.last), float64(p.seen), float64(p.used), float64(p.soonest), float64(p.latest))
	t.Next = append(t.Next, p.entries...)
	t.TTL = max(0, p.latest-now)
}

// permitEnds gives when a permit expires that is given or renewed now. Many expire together, to be looked for together.
func permitEnds(now int64, l *limiter.Limit) int64 {
	window := l.Window.Microseconds()
	tick := window / ticks
	return (now + window + tick - 1) / tick * tick
}

func takeConcurrency(t *Taking, state []byte, now int64, l *limiter.Limit, cost, times int64) {
	p := loadPermits(state, now)
	t.Admitted = fitting(l.Requests-p.used, cost, times)
	given := t.Admitted
	if cost == 0 {
		given = 0
	}
	first := max(p.last+1, now)
	t.Said = pack(t.Said, float64(p.used+given*cost), float64(first), float64(given))
	if given == 0 {
		if p.swept {
			p.keep(t, now)
		}
		return
	}
	expires := permitEnds(now, l)
	p.last, p.seen, p.used = first+given-1, max(p.seen, now), p.used+given*cost
	p.soonest, p.latest = min(p.soonest, expires), max(p.latest, expires)
	p.keep(t, now)
	for id := first; id <= p.last; id++ {
		t.Next = binary.LittleEndian.AppendUint16(pack(t.Next, float64(id), float64(expires)), uint16(cost))
	}
}

func tellConcurrency(said []byte, _ int64, l *limiter.Limit, p Place) limiter.Verdict {
	if len(said) == 0 {
		said = pack(nil, 0, 0, 0)
	}
	used, first := unpack(said)
	_, given := unpack(said[8:])
	v := limiter.Verdict{
		Allowed:    p.Allowed,
		Remaining:  max(0, l.Requests-int64(used)+p.later()),
		ResetAfter: min(tryAgain, l.Window),
	}
	if p.Nth < int64(given) {
		v.Receipt = int64(first) + p.Nth
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

func amendConcurrency(t *Taking, state []byte, now int64, l *limiter.Limit, c Charge) {
	p := loadPermits(state, now)
	p.seen = max(p.seen, now)
	at, ok := p.find(c.Receipt)
	switch {
	case ok && c.Renew:
		p.renew(t, at, now, l)
	case ok:
		p.refund(t, at, now)
	case p.swept:
		p.keep(t, now)
	}
}

func (p permits) renew(t *Taking, at int, now int64, l *limiter.Limit) {
	expires := permitEnds(now, l)
	p.soonest, p.latest = min(p.soonest, expires), max(p.latest, expires)
	p.keep(t, now)
	binary.LittleEndian.PutUint64(t.Next[permitsHeader+at+8:], math.Float64bits(float64(expires)))
}

func (p permits) refund(t *Taking, at int, now int64) {
	p.used -= int64(binary.LittleEndian.Uint16(p.entries[at+16:]))
	if p.used == 0 {
		p.soonest, p.latest = longest, 0
	}
	p.keep(t, now)
	t.Next = append(t.Next[:permitsHeader+at], t.Next[permitsHeader+at+permitSize:]...)
}
