// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// leakyBucketQueue gives each request a slot, and has it wait until then. After a slot the next one is cost *
// window/requests later, and no two are in the same microsecond. A request is refused whose slot would be more than
// MaxDelay away, or more than MaxQueue turns of window/requests: so fewer than MaxQueue wait ahead of it, where a cost
// counts as so many. What remains is how many requests of a cost of 1 would be admitted now.
//
// A request that leaves gives its slot back. The last slot is the next free one again, and so are those before it that
// were given back already. Any other of a cost of 1 is a hole until it has passed, which the next request of a cost
// of 1 takes. There are at most 128, with which a counter takes 1.4 KB of Redis, and what is given back beside them is
// nobody's.
//
// When requests or window are changed, slots stay as they were given, and holes are lost. If that makes the queue
// slower, those that wait by then and MaxQueue more can wait at a time.
//
// Its state is the next free slot in whole microseconds and in parts of one, the requests and the window that it was
// written for, the time by then, and how far that is ahead of Redis's clock, as six doubles; then the holes in order, a
// double each. As many parts as requests are a microsecond, so that no rate is rounded. The queue has a clock of its
// own because a receipt is the slot on it: when Redis's is set back, the queue's goes on from where it was.
var leakyBucketQueue = Strategy{
	code:     7,
	layout:   7,
	smallest: queueHeader,
	Validate: validateLeakyBucketQueue,
	Take:     takeLeakyBucketQueue,
	Tell:     tellLeakyBucketQueue,
	Amend:    amendLeakyBucketQueue,
	lives:    func(l *limiter.Limit) time.Duration { return wait(float64(longestWait(l).ceil())) + l.Window },
	largest:  func(*limiter.Limit) int { return queueHeader + 8*maxHoles },
	params: func(p *[maxParams]float64, _ int64, l *limiter.Limit) {
		longest := longestWait(l)
		p[0], p[1] = float64(l.Requests), float64(l.Window.Microseconds())
		p[2], p[3] = float64(longest.whole), float64(longest.part)
	},
	lua: queueLua + `return function(state, cost, times, counter)
  local clock, next, part, holes, moved = load(state)
  local admitted, used = 0, 0
  if cost == 0 then
    admitted = times
  elseif cost <= requests then
    local latest = clock + longest
    if cost == 1 then
      while admitted < times and used < #holes and read('<d', holes, used + 1) <= latest do
        admitted, used = admitted + 1, used + 8
      end
    end
    local turn, rest = turn_of(cost)
    while admitted < times and (next < latest or next == latest and part <= longest_part) do
      next, part, admitted = next + turn, part + rest, admitted + 1
      if part >= requests then next, part = next + 1, part - requests end
    end
  end
  if (admitted == 0 or cost == 0) and not moved then return admitted, state end
  local header = header_of(counter, clock, next, part)
  if used == 0 then return admitted, header .. holes, true end
  -- The slots of those who took holes are told as well.
  return admitted, header .. sub(holes, used + 1), true, header .. holes
end`,
	amendLua: queueLua + `local function slot_before(next, part, turn, rest)
  next, part = next - turn, part - rest
  if part < 0 then next, part = next - 1, part + requests end
  return next, part, next + ceil(part / requests)
end

return function(state, cost, receipt, _, counter)
  local clock, next, part, holes, _, same = load(state)
  if not same or next <= clock then return nil end
  local slot, slot_part, told = slot_before(next, part, turn_of(cost))
  if told == receipt then
    repeat
      next, part = slot, slot_part
      -- A receipt of an earlier queue can have left a hole that is not before the next free slot.
      while #holes > 0 and read('<d', holes, #holes - 7) >= next + ceil(part / requests) do holes = sub(holes, 1, -9) end
      slot, slot_part, told = slot_before(next, part, turn_of(1))
      local free = #holes > 0 and told == read('<d', holes, #holes - 7)
      if free then holes = sub(holes, 1, -9) end
    until not free
  elseif cost == 1 and receipt >= clock and receipt < next and #holes < 8 * MAX_HOLES then
    local at = #holes
    while at > 0 and read('<d', holes, at - 7) > receipt do at = at - 8 end
    holes = sub(holes, 1, at) .. write('<d', receipt) .. sub(holes, at + 1)
  else
    return nil
  end
  return header_of(counter, clock, next, part) .. holes
end`,
}

const (
	// queueHeader is how many bytes of a state come before the holes.
	queueHeader = 48
	maxHoles    = 128
)

// queueLua is what both functions of a queue need.
var queueLua = fmt.Sprintf("local FRONT, MAX_HOLES = %d, %d\n", header+queueHeader, maxHoles) +
	`local requests, window, longest, longest_part = ...

-- Gives how long a cost takes, in whole microseconds and in parts. It multiplies in two steps: above 2^53 a product
-- would be rounded.
local function turn_of(cost)
  local turn, rest = floor(window / requests), window % requests
  local high, low = floor(cost / 32768), cost % 32768
  local upper = high * rest
  local lower = upper % requests * 32768 + low * rest
  turn = cost * turn + floor(upper / requests) * 32768 + floor(lower / requests)
  if turn == 0 then return 1, 0 end
  return turn, lower % requests
end

-- Gives the time on the queue's clock, the next free slot, the holes that have not passed, whether the clock is not
-- where the state has it, and whether that is for the same requests and window.
local function load(state)
  if not state then return now, now, 0, '', false, false end
  local next, part, per, length, last, ahead = read('<dddddd', state, 7)
  local clock, moved = now + ahead, false
  -- A clock that was set back a little is waited for.
  if last - clock > GRACE then clock, moved = last, true end
  if next < clock then return now, now, 0, '', false, false end
  -- Parts of another size are rounded up: a slot must not be too early.
  if per ~= requests and part > 0 then next, part = next + 1, 0 end
  if per ~= requests or length ~= window then return clock, next, part, '', moved, false end
  local at = FRONT + 1
  while at < #state and read('<d', state, at) < clock do at = at + 8 end
  return clock, next, part, sub(state, at), moved, true
end

-- Gives what comes before the holes.
local function header_of(counter, clock, next, part)
  local expiry = keep(counter, max(0, next - clock + ceil(part / requests)))
  return write('<BI5dddddd', LAYOUT, expiry, next, part, requests, window, clock, clock - now)
end

`

func validateLeakyBucketQueue(l *limiter.Limit) error {
	if err := validateRate(l); err != nil {
		return err
	}
	switch {
	case l.MaxDelay < 0:
		return fmt.Errorf("maxDelay must be at least 0s, not %s", l.MaxDelay)
	case l.MaxDelay > maxWindow:
		return fmt.Errorf("maxDelay must be at most 8784h, not %s", l.MaxDelay)
	case l.MaxDelay%time.Microsecond != 0:
		return fmt.Errorf("maxDelay must be whole microseconds, not %s", l.MaxDelay)
	case l.MaxQueue < 0:
		return fmt.Errorf("maxQueue must be at least 0, not %d", l.MaxQueue)
	case l.MaxQueue > maxRequests:
		return fmt.Errorf("maxQueue must be at most %d, not %d", maxRequests, l.MaxQueue)
	}
	return nil
}

func takeLeakyBucketQueue(t *Taking, state []byte, now int64, l *limiter.Limit, cost, times int64) {
	q := loadQueue(state, now, l)
	before := q.holes
	switch {
	case cost == 0:
		t.Admitted = times
	case cost <= l.Requests:
		if cost == 1 {
			t.Admitted = q.takeHoles(times)
		}
		t.Admitted += q.takeNext(cost, times-t.Admitted)
	}
	if (t.Admitted == 0 || cost == 0) && !q.moved {
		return
	}
	t.Next = append(q.header(t.Next), q.holes...)
	t.TTL = q.next.ceil() - q.clock
	if len(q.holes) < len(before) {
		t.Said = append(q.header(t.Said), before...)
	}
}

func tellLeakyBucketQueue(said []byte, now int64, l *limiter.Limit, p Place) limiter.Verdict {
	q := loadQueue(said, now, l)
	v := limiter.Verdict{Allowed: p.Allowed}
	if slot, ok := q.rewind(p); ok {
		v.Wait, v.Receipt = wait(float64(slot-q.clock)), slot
	}
	v.Remaining = q.places()
	v.ResetAfter = q.lasts(v.Remaining)
	if v.Remaining == 0 {
		v.ResetAfter = q.due(1)
	}
	switch {
	case p.Allowed:
	case p.Cost > l.Requests:
		v.RetryAfter = limiter.Never
	default:
		v.RetryAfter = q.due(p.Cost)
	}
	return v
}

func amendLeakyBucketQueue(t *Taking, state []byte, now int64, l *limiter.Limit, c Charge) {
	q := loadQueue(state, now, l)
	if !q.same || q.next.whole <= q.clock {
		return
	}
	at := len(q.holes)
	switch last := q.later(q.next, -1, q.turn(c.Cost)); {
	case last.ceil() == c.Receipt:
		q.next = last
		q.close()
		t.Next = append(q.header(t.Next), q.holes...)
	case c.Cost == 1 && c.Receipt >= q.clock && c.Receipt < q.next.whole && at < 8*maxHoles:
		for at > 0 && q.hole(at-8) > c.Receipt {
			at -= 8
		}
		t.Next = append(q.header(t.Next), q.holes[:at]...)
		t.Next = append(pack(t.Next, float64(c.Receipt)), q.holes[at:]...)
	default:
		return
	}
	t.TTL = max(0, q.next.ceil()-q.clock)
}

// moment is a time, or a length of time, in whole microseconds and in parts of one, which are always less than one. As
// many parts as a queue has requests are one.
type moment struct{ whole, part int64 }

// ceil gives the first whole microsecond that isn't before the moment.
func (m moment) ceil() int64 {
	if m.part > 0 {
		return m.whole + 1
	}
	return m.whole
}

func (m moment) after(n moment) bool {
	return m.whole > n.whole || m.whole == n.whole && m.part > n.part
}

// queue is what a state says of a queue now.
type queue struct {
	requests, window int64
	// longest is the longest that a request waits.
	longest moment
	// now is Redis's time, and clock the time on the queue's clock.
	now, clock int64
	next       moment
	// holes are as in the state, so that reading them allocates nothing.
	holes []byte
	// moved says that the clock is not where the state has it, and same that the state is for the same requests and
	// window.
	moved, same bool
}

// loadQueue is the function load of queueLua in Go.
func loadQueue(state []byte, now int64, l *limiter.Limit) queue {
	q := queue{requests: l.Requests, window: l.Window.Microseconds(), longest: longestWait(l), now: now, clock: now}
	q.next.whole = now
	if len(state) == 0 {
		return q
	}
	whole, part := unpack(state)
	requests, window := unpack(state[16:])
	last, ahead := unpack(state[32:])
	clock := now + int64(ahead)
	moved := int64(last)-clock > grace
	if moved {
		clock = int64(last)
	}
	if int64(whole) < clock {
		return q
	}
	q.clock, q.moved = clock, moved
	q.next = moment{int64(whole), int64(part)}
	if int64(requests) != q.requests {
		q.next = moment{q.next.ceil(), 0}
	}
	if q.same = int64(requests) == q.requests && int64(window) == q.window; q.same {
		// No rule writes a part of a hole.
		q.holes = state[queueHeader : len(state)-len(state)%8]
	}
	for len(q.holes) > 0 && q.hole(0) < clock {
		q.holes = q.holes[8:]
	}
	return q
}

// longestWait gives MaxDelay, or the turns of MaxQueue requests where that is less.
func longestWait(l *limiter.Limit) moment {
	delay := moment{whole: l.MaxDelay.Microseconds()}
	q := queue{requests: l.Requests, window: l.Window.Microseconds()}
	turn := q.turn(1)
	if l.MaxQueue == 0 || l.MaxQueue > delay.whole/turn.whole {
		return delay
	}
	if turns := q.later(moment{}, l.MaxQueue, turn); !turns.after(delay) {
		return turns
	}
	return delay
}

// turn gives how long a cost takes. It is at least a microsecond: so each slot is told by one of its own.
func (q *queue) turn(cost int64) moment {
	high, low := bits.Mul64(uint64(cost), uint64(q.window))
	whole, part := bits.Div64(high, low, uint64(q.requests))
	if whole == 0 {
		return moment{whole: 1}
	}
	return moment{int64(whole), int64(part)}
}

// later gives the moment so many times a length of time after another, or before it.
func (q *queue) later(m moment, times int64, length moment) moment {
	whole, part := m.whole+times*length.whole, m.part+times*length.part
	whole, part = whole+part/q.requests, part%q.requests
	if part < 0 {
		whole, part = whole-1, part+q.requests
	}
	return moment{whole, part}
}

// latest gives the last slot that a request may wait for.
func (q *queue) latest() moment { return moment{q.clock + q.longest.whole, q.longest.part} }

// hole gives the hole that starts at a byte.
func (q *queue) hole(at int) int64 {
	return int64(math.Float64frombits(binary.LittleEndian.Uint64(q.holes[at:])))
}

// takeHoles gives how many of so many requests take holes.
func (q *queue) takeHoles(times int64) (taken int64) {
	latest := q.latest()
	for taken < times && len(q.holes) > 0 && q.hole(0) <= latest.whole {
		q.holes = q.holes[8:]
		taken++
	}
	return taken
}

// takeNext gives how many of so many requests take the next free slots.
func (q *queue) takeNext(cost, times int64) (taken int64) {
	if times == 0 {
		return 0
	}
	latest, turn := q.latest(), q.turn(cost)
	for taken < times && !q.next.after(latest) {
		q.next = q.later(q.next, 1, turn)
		taken++
	}
	return taken
}

// header appends what comes before the holes.
func (q *queue) header(dst []byte) []byte {
	return pack(dst, float64(q.next.whole), float64(q.next.part), float64(q.requests), float64(q.window),
		float64(q.clock), float64(q.clock-q.now))
}

// rewind makes the queue what it was after one of the requests that were decided together, and gives the slot of that
// one if it has one. Before, the queue still has the holes that they took.
func (q *queue) rewind(p Place) (slot int64, ok bool) {
	charged, taken := p.Charged, int64(0)
	if p.Cost == 1 {
		taken = min(charged, int64(len(q.holes)/8))
	}
	switch {
	case p.Cost == 0:
		return 0, false
	case p.Nth >= charged:
		q.holes = q.holes[8*taken:]
		return 0, false
	case p.Nth < taken:
		slot = q.hole(int(8 * p.Nth))
		q.holes = q.holes[8*(p.Nth+1):]
		q.next = q.later(q.next, taken-charged, q.turn(1))
		return slot, true
	}
	turn := q.turn(p.Cost)
	q.holes = q.holes[8*taken:]
	q.next = q.later(q.next, p.Nth+1-charged, turn)
	return q.later(q.next, -1, turn).ceil(), true
}

// places gives how many requests of a cost of 1 have a slot that is not too late.
func (q *queue) places() int64 {
	latest := q.latest()
	n := int64(0)
	for at := 0; at < len(q.holes) && q.hole(at) <= latest.whole; at += 8 {
		n++
	}
	if q.next.after(latest) {
		return n
	}
	left := q.later(latest, -1, q.next)
	high, low := bits.Mul64(uint64(left.whole), uint64(q.requests))
	low, carry := bits.Add64(low, uint64(left.part), 0)
	turns, _ := bits.Div64(high+carry, low, q.turnParts())
	return n + int64(turns) + 1
}

// lasts gives how long so many requests of a cost of 1 take.
func (q *queue) lasts(times int64) time.Duration {
	high, low := bits.Mul64(uint64(times), q.turnParts())
	whole, part := bits.Div64(high, low, uint64(q.requests))
	return wait(float64(moment{int64(whole), int64(part)}.ceil()))
}

// turnParts gives how long a cost of 1 takes, in parts alone.
func (q *queue) turnParts() uint64 { return uint64(max(q.window, q.requests)) }

// due gives when a request that is refused is no more, if nobody leaves or comes meanwhile.
func (q *queue) due(cost int64) time.Duration {
	latest := q.latest()
	late := q.later(q.next, -1, latest).ceil()
	if cost == 1 && len(q.holes) > 0 {
		late = min(late, q.hole(0)-latest.whole)
	}
	return wait(float64(late))
}

// close makes the holes that are last the next free slot.
func (q *queue) close() {
	turn := q.turn(1)
	for q.trim(); len(q.holes) > 0; q.trim() {
		last := q.later(q.next, -1, turn)
		if last.ceil() != q.hole(len(q.holes)-8) {
			return
		}
		q.next, q.holes = last, q.holes[:len(q.holes)-8]
	}
}

// trim drops the holes that are not before the next free slot. A receipt of an earlier queue can have left one there.
func (q *queue) trim() {
	for len(q.holes) > 0 && q.hole(len(q.holes)-8) >= q.next.ceil() {
		q.holes = q.holes[:len(q.holes)-8]
	}
}
