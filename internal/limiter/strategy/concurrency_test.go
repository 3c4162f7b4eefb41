// SPDX-License-Identifier: Apache-2.0

package strategy_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// permit is one that was given. It is sure to be out until a time, and sure to be back at another.
type permit struct {
	id, cost, until, back int64
	refunded              bool
}

// office gives permits and keeps books on them.
type office struct {
	evaluator strategy.Evaluator
	counter   strategy.Counter
	limit     limiter.Limit
	// now can be behind latest, which is the time that counts.
	now, latest int64
	permits     []*permit
}

// lasts gives until when a permit is out that is given or renewed now, and when it is back.
func (o *office) lasts() (until, back int64) {
	window := o.limit.Window.Microseconds()
	return o.now + window, o.now + window + window/64
}

// surely gives how much is out for sure, and possibly how much can be.
func (o *office) surely() (sum int64) {
	for _, p := range o.permits {
		if !p.refunded && p.until > o.latest {
			sum += p.cost
		}
	}
	return sum
}

func (o *office) possibly() (sum int64) {
	for _, p := range o.permits {
		if !p.refunded && p.back > o.now {
			sum += p.cost
		}
	}
	return sum
}

func (o *office) take(rt *rapid.T, cost int64) {
	before := o.possibly()
	v := decide(&o.evaluator, o.now, limiter.Hit{Key: "a", Limit: o.limit, Cost: cost}, &o.counter)
	if !v.Allowed {
		if before+cost <= o.limit.Requests {
			rt.Fatalf("%d were refused while %d of %d were out", cost, before, o.limit.Requests)
		}
		return
	}
	for _, p := range o.permits {
		if p.id == v.Receipt {
			rt.Fatalf("the permit %d is given twice", v.Receipt)
		}
	}
	p := &permit{id: v.Receipt, cost: cost}
	p.until, p.back = o.lasts()
	o.permits = append(o.permits, p)
	if out := o.surely(); out > o.limit.Requests {
		rt.Fatalf("%d of %d are out", out, o.limit.Requests)
	}
}

func (o *office) refund(p *permit) {
	o.evaluator.Amend(o.now, &limiter.Hit{Limit: o.limit, Cost: p.cost}, &o.counter, p.id, false)
	p.refunded = true
}

// renew leaves alone what may be out or back: the books couldn't tell what became of it.
func (o *office) renew(p *permit) {
	if p.until <= o.latest && p.back > o.now {
		return
	}
	o.evaluator.Amend(o.now, &limiter.Hit{Limit: o.limit, Cost: p.cost}, &o.counter, p.id, true)
	if p.until > o.latest {
		p.until, p.back = o.lasts()
	}
}

// wait sets the clock forward, often to where a permit expires or beside it, or back by up to so much.
func (o *office) wait(rt *rapid.T, back int64) {
	window := o.limit.Window.Microseconds()
	switch rapid.IntRange(0, 4).Draw(rt, "wait") {
	case 0:
		o.now += rapid.Int64Range(0, window).Draw(rt, "any")
	case 1:
		o.now += rapid.Int64Range(0, window/16).Draw(rt, "short")
	case 2:
		if len(o.permits) > 0 {
			p := rapid.SampledFrom(o.permits).Draw(rt, "end of")
			end := rapid.SampledFrom([]int64{p.until, p.back}).Draw(rt, "end")
			o.now = max(o.now, end+rapid.Int64Range(-1, 1).Draw(rt, "beside"))
		}
	case 3:
		o.now = o.latest - rapid.Int64Range(0, back).Draw(rt, "back")
	}
	o.latest = max(o.latest, o.now)
}

func TestConcurrencyBound(t *testing.T) {
	for name, back := range map[string]int64{
		"no more are out than may be, and none is lost":                                 0,
		"no more are out than may be, and none is lost when the clock is back a little": 1_000_000,
	} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				o := &office{limit: limits(rt, limiter.Concurrency), now: epoch, latest: epoch}
				for range rapid.IntRange(1, 100).Draw(rt, "number") {
					o.wait(rt, back)
					action := rapid.IntRange(0, 5).Draw(rt, "action")
					switch {
					case action == 0:
						o.limit.Requests = limits(rt, limiter.Concurrency).Requests
					case action == 1 && len(o.permits) > 0:
						o.refund(rapid.SampledFrom(o.permits).Draw(rt, "refund"))
					case action == 2 && len(o.permits) > 0:
						o.renew(rapid.SampledFrom(o.permits).Draw(rt, "renew"))
					default:
						o.take(rt, rapid.Int64Range(1, max(1, o.limit.Requests/4)).Draw(rt, "cost"))
					}
				}
			})
		})
	}
}

func TestConcurrency(t *testing.T) {
	l := limiter.Limit{Algorithm: limiter.Concurrency, Requests: 2, Window: time.Minute}
	h := limiter.Hit{Key: "a", Limit: l, Cost: 1}
	t.Run("a permit of a counter that was lost has another id than the one before", func(t *testing.T) {
		var e strategy.Evaluator
		var lost, c strategy.Counter
		old := decide(&e, epoch, h, &lost)
		decide(&e, epoch+1, h, &c)
		e.Amend(epoch+1, &h, &c, old.Receipt, false)
		if got := peek(c, epoch+1, l, 0).Remaining; got != 1 {
			t.Errorf("%d remain, not 1", got)
		}
	})
	t.Run("a renewed permit's counter is not forgotten", func(t *testing.T) {
		var e strategy.Evaluator
		var c strategy.Counter
		permit, now := decide(&e, epoch, h, &c).Receipt, epoch
		for range 10 {
			now += l.Window.Microseconds() - 1
			e.Amend(now, &h, &c, permit, true)
		}
		if got := peek(c, now+l.Window.Microseconds()-1, l, 0).Remaining; got != 1 {
			t.Errorf("%d remain, not 1", got)
		}
	})
}
