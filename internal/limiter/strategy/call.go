// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/weir-dev/weir/internal/limiter"
)

const (
	// width is how many doubles the terms of a hit are: four that all have, and the parameters.
	width = 4 + maxParams
	// maxParams is the most parameters that a strategy has.
	maxParams = 6
	// maxTimes is the most equal requests that are decided as one.
	maxTimes = math.MaxUint8
)

// Request is one request of a [Call]. Its hits have to pass [Check].
type Request struct {
	Hits []limiter.Hit
	// Try asks what each hit would be told, and charges nothing.
	Try bool
	// Receipts, if there are any, are those of charges: one for each hit. They are refunded, or renewed.
	Receipts []int64
	Renew    bool
}

// Call is one call of [Script]. The zero value has no requests; a Call can be used again after [Call.Reset], and keeps
// its memory. It is not safe for concurrent use.
type Call struct {
	now      int64
	keys     []string
	terms    []byte
	requests []byte

	counters map[string]int
	known    map[term]int
	// newest is what the hits of a counter were last on: most are on the same terms.
	newest      term
	newestPlace int
	groups      []group
	// places has, for each request in the order of Add, its group and its place in it.
	places []place
	// last is, by counter, the last group that hits it, and -1 where that is none or one by itself, or a charge came
	// after it.
	last []int
	// touched are the counters of the request that is being added.
	touched []int
	hits    int
	said    []byte

	// plain says that all requests do nothing but take, with as many hits each as number says, none of them a shadow's.
	plain  bool
	number int
	apart  []byte

	answered []answer
	told     [][]limiter.Verdict
}

// term is what hits of different counters can have in common.
type term struct {
	limit  limiter.Limit
	cost   int64
	shadow bool
}

// group is equal requests, which are decided as one.
type group struct {
	Request
	times int
	// start and end are where its bytes are in the call's requests, and first is where its answers start.
	start, end, first int
}

type place struct{ group, nth int }

// Reset makes the call one without requests. Now is microseconds since the Unix epoch: the caller's time, or what
// a [StaleError] told it of Redis's.
func (c *Call) Reset(now int64) {
	if c.counters == nil {
		c.counters, c.known = map[string]int{}, map[term]int{}
	}
	clear(c.counters)
	clear(c.known)
	clear(c.groups)
	c.now, c.newest, c.newestPlace, c.hits, c.plain, c.number = now, term{}, -1, 0, true, 0
	c.keys, c.terms, c.requests = c.keys[:0], c.terms[:0], c.requests[:0]
	c.groups, c.places, c.last = c.groups[:0], c.places[:0], c.last[:0]
}

// Add adds a request, to be decided after those that were added before. Equal ones are decided as one where that
// makes no difference.
func (c *Call) Add(r Request) {
	c.plain = c.plain && !r.Try && len(r.Receipts) == 0 && (c.number == 0 || c.number == len(r.Hits))
	c.number = len(r.Hits)
	if len(r.Receipts) > 0 {
		c.addCharges(r)
		return
	}
	start := len(c.requests)
	m := modeTake
	if r.Try {
		m = modeTry
	}
	// What takes up to its cost is several equal requests already, and has one verdict.
	alone, times := r.Hits[0].UpTo, int(timesOf(&r.Hits[0]))
	c.open(m, times, len(r.Hits))
	c.touched = c.touched[:0]
	for i := range r.Hits {
		c.touched = append(c.touched, c.addHit(&r.Hits[i]))
	}
	if g := c.last[c.touched[0]]; g >= 0 && !alone && c.joins(g, start) {
		c.requests = c.requests[:start]
		c.places = append(c.places, place{g, c.groups[g].times})
		c.groups[g].times++
		c.requests[c.groups[g].start+1]++
		return
	}
	for _, counter := range c.touched {
		c.last[counter] = len(c.groups)
		if alone {
			c.last[counter] = -1
		}
	}
	c.places = append(c.places, place{len(c.groups), 0})
	c.groups = append(c.groups, group{Request: r, times: times, start: start, end: len(c.requests), first: c.hits})
	c.hits += len(r.Hits)
}

// joins says whether the request that starts there is equal to those of a group, and nothing has hit any of its
// counters since: so it may as well have come right after them.
func (c *Call) joins(g, start int) bool {
	old := &c.groups[g]
	for _, counter := range c.touched {
		if c.last[counter] != g {
			return false
		}
	}
	const sizes = 2 // The mode and the number come first; the number of hits, the counters and the terms decide.
	return old.times < maxTimes && c.requests[old.start] == c.requests[start] &&
		string(c.requests[old.start+sizes:old.end]) == string(c.requests[start+sizes:])
}

// addCharges adds what was charged, one by one: each of them stands for itself.
func (c *Call) addCharges(r Request) {
	m := modeRefund
	if r.Renew {
		m = modeRenew
	}
	for i := range r.Hits {
		c.open(m, 1, 1)
		c.last[c.addHit(&r.Hits[i])] = -1
		c.requests = binary.LittleEndian.AppendUint64(c.requests, math.Float64bits(float64(r.Receipts[i])))
	}
	c.places = append(c.places, place{-1, 0})
}

func (c *Call) open(m mode, times, hits int) {
	c.requests = append(c.requests, byte(m), byte(times))
	c.requests = binary.BigEndian.AppendUint16(c.requests, uint16(hits))
}

// addHit gives the place of the hit's counter.
func (c *Call) addHit(h *limiter.Hit) (counter int) {
	counter, ok := c.counters[h.Key]
	if !ok {
		counter = len(c.keys)
		c.counters[h.Key] = counter
		c.keys = append(c.keys, h.Key)
		c.last = append(c.last, -1)
	}
	c.requests = binary.BigEndian.AppendUint16(c.requests, uint16(counter))
	c.requests = binary.BigEndian.AppendUint16(c.requests, uint16(c.addTerm(h)))
	return counter
}

func (c *Call) addTerm(h *limiter.Hit) int {
	cost := costOf(h)
	if c.newestPlace >= 0 && c.newest.cost == cost && c.newest.shadow == h.Shadow && c.newest.limit == h.Limit {
		return c.newestPlace
	}
	t := term{h.Limit, cost, h.Shadow}
	i, ok := c.known[t]
	if !ok {
		i = len(c.known)
		c.known[t] = i
		c.plain = c.plain && !h.Shadow
		c.terms = t.appendTo(c.terms, c.now)
	}
	c.newest, c.newestPlace = t, i
	return i
}

func (t term) appendTo(b []byte, now int64) []byte {
	s := of(t.limit.Algorithm)
	shadow := 0.0
	if t.shadow {
		shadow = 1
	}
	b = pack(b, float64(s.code), float64(s.layout), float64(t.cost), shadow)
	var params [maxParams]float64
	s.params(&params, now, &t.limit)
	return pack(b, params[:]...)
}

// Keys are the counters, each once.
func (c *Call) Keys() []string { return c.keys }

// Args are the arguments of [Script].
func (c *Call) Args() []any { return []any{string(c.terms), string(c.requests)} }

// Apart gives the arguments of the script of that name, if it can decide the call: if all requests take, with as many
// hits each, and no two different ones from one counter.
func (c *Call) Apart() (args []any, ok bool) {
	if !c.plain || c.hits != len(c.keys) {
		return nil, false
	}
	c.apart = c.apart[:0]
	for i := range c.groups {
		request := c.requests[c.groups[i].start:c.groups[i].end]
		// Its times are the second byte, and the place of a hit's terms are the last two of four.
		for hit := 4; hit < len(request); hit += 4 {
			c.apart = append(c.apart, request[1], request[hit+2], request[hit+3])
		}
	}
	return []any{string(c.terms), string(c.apart), c.number}, true
}

// StaleError says that a [Call] was for another time than Redis's. Nothing was decided or charged.
type StaleError struct {
	// Now is Redis's time, in microseconds since the Unix epoch.
	Now int64
}

func (e *StaleError) Error() string { return fmt.Sprintf("the call is not for the time %d", e.Now) }

// Verdicts reads the reply to the call. There are verdicts for the hits of each request, in the order of Add, and
// none for those that have receipts. The verdicts are the caller's; the list of them is good until the next
// [Call.Reset].
func (c *Call) Verdicts(reply []any) (verdicts [][]limiter.Verdict, err error) {
	// A state was not always written by a rule: anybody with the right to could have. It must not end the process.
	defer func() {
		if fault := recover(); fault != nil {
			verdicts, err = nil, fmt.Errorf("reading the verdicts: no rule has written that state: %v", fault)
		}
	}()
	if len(reply) == 0 {
		return nil, errors.New("reading the verdicts: the reply is empty")
	}
	now, ok := reply[0].(int64)
	switch {
	case !ok, now < 0, now > longest:
		return nil, fmt.Errorf("reading the verdicts: %v is no time", reply[0])
	case len(reply) == 1:
		return nil, &StaleError{Now: now}
	}
	answers, err := c.answers(reply[1], reply[2:])
	if err != nil {
		return nil, err
	}
	return c.tell(now, answers), nil
}

// answer is what Redis says of one hit of a group.
type answer struct {
	admitted int64
	said     string
}

// answers are in the order of the groups and their hits. What no rule can have said is an error: it must not be
// told from.
func (c *Call) answers(admissions any, said []any) ([]answer, error) {
	admitted, ok := admissions.(string)
	if !ok || len(admitted) != c.hits {
		return nil, fmt.Errorf("reading the verdicts: %q are no admissions of %d hits", admissions, c.hits)
	}
	if err := c.separate(said); err != nil {
		return nil, fmt.Errorf("reading the verdicts: %w", err)
	}
	n := 0
	for i := range c.groups {
		g := &c.groups[i]
		for j := range g.Hits {
			a := &c.answered[n]
			a.admitted = int64(admitted[n])
			if a.admitted > int64(g.times) {
				return nil, fmt.Errorf("reading the verdicts: %d of %d requests can't be admitted", a.admitted, g.times)
			}
			algorithm := g.Hits[j].Limit.Algorithm
			if a.said != "" && len(a.said) < header+of(algorithm).smallest {
				return nil, fmt.Errorf("reading the verdicts: %q is no state of %s", a.said, algorithm)
			}
			n++
		}
	}
	return c.answered, nil
}

// separate reads what is said of each hit. It is one text if all are of one size.
func (c *Call) separate(said []any) error {
	c.answered = c.answered[:0]
	for _, part := range said {
		text, ok := part.(string)
		if !ok {
			return fmt.Errorf("%v is no state", part)
		}
		c.answered = append(c.answered, answer{said: text})
	}
	if len(said) == 1 && c.hits != 1 {
		c.separateEvenly(c.answered[0].said)
	}
	if len(c.answered) != c.hits {
		return fmt.Errorf("%d hits got %d answers", c.hits, len(c.answered))
	}
	return nil
}

func (c *Call) separateEvenly(text string) {
	c.answered = c.answered[:0]
	if c.hits == 0 || len(text)%c.hits != 0 {
		return
	}
	size := len(text) / c.hits
	for i := range c.hits {
		c.answered = append(c.answered, answer{said: text[i*size : (i+1)*size]})
	}
}

// tell makes verdicts of the answers, for one request after the other.
func (c *Call) tell(now int64, answers []answer) [][]limiter.Verdict {
	room := make([]limiter.Verdict, c.rooms())
	c.told = c.told[:0]
	for _, p := range c.places {
		if p.group < 0 {
			c.told = append(c.told, nil)
			continue
		}
		g := &c.groups[p.group]
		n := len(g.Hits)
		c.tellOne(room[:n], now, g, answers[g.first:][:n], int64(p.nth))
		c.told, room = append(c.told, room[:n:n]), room[n:]
	}
	return c.told
}

// rooms is how many verdicts there will be.
func (c *Call) rooms() int {
	rooms := 0
	for _, p := range c.places {
		if p.group >= 0 {
			rooms += len(c.groups[p.group].Hits)
		}
	}
	return rooms
}

// tellOne makes the verdicts of the nth of the equal requests of a group.
func (c *Call) tellOne(verdicts []limiter.Verdict, now int64, g *group, answers []answer, nth int64) {
	admitted := g.admitted(answers)
	for i := range g.Hits {
		h, a := &g.Hits[i], &answers[i]
		if h.Shadow && nth >= admitted {
			continue
		}
		p := Place{Cost: costOf(h), Nth: nth, Charged: min(a.admitted, admitted)}
		if h.UpTo {
			p.Nth = max(0, p.Charged-1)
		}
		p.Allowed = nth < a.admitted || !h.Shadow && a.admitted > admitted
		verdicts[i] = of(h.Limit.Algorithm).tell(c.state(a), now, h, p)
	}
}

// admitted is how many of the equal requests are: as many as all hits admit that count.
func (g *group) admitted(answers []answer) int64 {
	admitted := int64(g.times)
	if g.Try {
		return 0
	}
	for i := range g.Hits {
		if !g.Hits[i].Shadow {
			admitted = min(admitted, answers[i].admitted)
		}
	}
	return admitted
}

// header is how many bytes of a value in Redis come before the state: its layout, and when it expires.
const header = 6

// state is what was said without the header. It is good until the next call of state.
func (c *Call) state(a *answer) []byte {
	if a.said == "" {
		return nil
	}
	c.said = append(c.said[:0], a.said[header:]...)
	return c.said
}
