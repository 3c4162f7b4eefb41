// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"math"
	"math/rand/v2"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

const (
	// A counter is leased from once as many requests come within a horizon, two horizons in a row, as make a lease
	// worth a round trip, and no more once next to none come for ten.
	manyAhead, fewAhead = 4, 2
	busyHorizons        = 2
	idleHorizons        = 10
	// lowPart is the part of a horizon for which a lease still has to last when the next one is asked for.
	lowPart = 0.3
	// maxGrowth is by how much demand grows at most when leases run out.
	maxGrowth = 16
	// maxPeak is how much more than its usual demand a replica asks for, where it comes in bursts and there is enough.
	// peakKept is the part of a peak that is kept from one horizon to the next.
	maxPeak  = 4
	peakKept = 15.0 / 16
	// leastTurn and mostTurn are how many horizons there are from one share to the next.
	leastTurn, mostTurn = 0.75, 1.25
	// recheck is how often a counter that has nothing left is asked again, however long it says to wait: others may
	// give back what they don't need.
	recheck = 500 * time.Millisecond
)

// account is what a replica holds of one counter, and what it knows of it. Its times are since some moment of this
// process; it is not safe for concurrent use.
type account struct {
	// hit is what all hits of the counter have in common.
	hit    limiter.Hit
	terms  strategy.Terms
	demand demand
	// leased says whether to take ahead of time. What is held is used in any case.
	leased bool
	// leases are in the order in which they were taken. Some may not be usable any more.
	leases []lease
	// asking says that a lease is under way, and asked since when. Before due none is asked for.
	asking bool
	asked  time.Duration
	due    time.Duration
	// size is what is to be held after it, but for rest, a part of a unit, and took how long one was under way lately.
	size int64
	rest float64
	took time.Duration
	// used is what was used of leases since the last one came, or they ran out.
	used  int64
	since time.Duration
	// said is what the counter last said, and at when it was asked.
	said limiter.Verdict
	at   time.Duration
	// everyone is the demand of all replicas, a second, as far as it is known, and untold what is not in it yet of
	// this one's.
	everyone float64
	untold   int64
	// share is the part of its demand that each replica asks for, so that there is some for all: 1 while there is
	// enough. Scarce says that there isn't.
	share  float64
	scarce bool
}

// lease is what was taken ahead of time, and not used yet.
type lease struct {
	receipt, left int64
	// dies is when it can't be used any more.
	dies time.Duration
}

func newAccount(h *limiter.Hit, terms strategy.Terms, now time.Duration) *account {
	a := &account{hit: *h, terms: terms, share: 1, demand: demand{horizon: terms.Horizon, since: now}}
	a.hit.Cost = 0
	return a
}

// answer is what an account says to a hit.
type answer int

const (
	// unknown is for the counter to decide.
	unknown answer = iota
	taken
	refused
)

// take decides a hit of a cost, if it can.
func (a *account) take(now time.Duration, cost int64) (limiter.Verdict, answer) {
	a.demand.add(now, cost)
	a.untold += cost
	a.leased = a.demand.busy >= busyHorizons || a.leased && a.demand.idle < idleHorizons
	for i := range a.leases {
		if l := &a.leases[i]; l.left >= cost && now < l.dies {
			l.left -= cost
			a.used += cost
			return a.admitted(now, l.receipt), taken
		}
	}
	// Whoever would ask the counter all the same would take from those who wait for their share. What costs more than
	// a lease is worth never gets into one.
	if a.leased && a.scarce && cost <= a.size {
		return a.refused(now), refused
	}
	a.runOut(now)
	return limiter.Verdict{}, unknown
}

// runOut takes the demand for what it was while there was something left: who has to wait for the counter asks for less.
func (a *account) runOut(now time.Duration) {
	if a.used == 0 {
		return
	}
	speed := float64(a.used) / (now - a.since).Seconds()
	speed = min(speed, maxGrowth*a.demand.rate)
	a.demand.rate, a.demand.peak = max(a.demand.rate, speed), max(a.demand.peak, speed)
	a.used = 0
}

func (a *account) admitted(now time.Duration, receipt int64) limiter.Verdict {
	return limiter.Verdict{
		Allowed:    true,
		Remaining:  a.said.Remaining + a.held(now),
		ResetAfter: max(0, a.said.ResetAfter-(now-a.at)),
		Receipt:    receipt,
	}
}

// refused tells to wait until the next lease, or for longer where the counter has said so.
func (a *account) refused(now time.Duration) limiter.Verdict {
	wait := max(a.due-now, a.said.RetryAfter-(now-a.at), time.Microsecond)
	return limiter.Verdict{RetryAfter: wait, ResetAfter: wait}
}

// held is what can be used.
func (a *account) held(now time.Duration) int64 {
	var sum int64
	for _, l := range a.leases {
		if now < l.dies {
			sum += l.left
		}
	}
	return sum
}

// wants says whether it is time to ask for a lease.
func (a *account) wants(now time.Duration) bool {
	if !a.leased || a.asking || now < a.due {
		return false
	}
	return a.scarce || float64(a.lasting(now)) <= a.low()
}

// lasting is what can still be used once a lease that is asked for now is there, and for a while after that.
func (a *account) lasting(now time.Duration) int64 {
	while := time.Duration(lowPart * float64(a.terms.Horizon))
	return a.held(now + min(a.took+while, a.terms.Term/2))
}

// low is how much is held when the next lease is asked for: enough for until it is there, were demand twice as much.
func (a *account) low() float64 {
	size := float64(a.size)
	return min(size, lowPart*size+2*a.demand.most()*a.took.Seconds())
}

// ahead is the demand of a horizon.
func (a *account) ahead() float64 { return a.demand.rate * a.terms.Horizon.Seconds() }

const (
	// censusHorizons are the horizons of which the demand of all is counted, and censusSize is above any.
	censusHorizons = 4
	censusSize     = 1_000_000_000
)

// census gives the hit that tells the others of the demand since the last time, and false where there is plenty for all:
// then nobody has to know.
func (a *account) census() (limiter.Hit, bool) {
	told := a.untold
	a.untold = 0
	if contended := a.at > 0 && 2*a.said.Remaining < a.hit.Limit.Capacity(); !contended && !a.scarce {
		a.everyone = 0
		return limiter.Hit{}, false
	}
	return limiter.Hit{Key: a.hit.Key + ":demand", Cost: told, ID: a.hit.ID, Limit: limiter.Limit{
		Algorithm: limiter.SlidingWindowApproximate,
		Requests:  censusSize,
		Window:    censusHorizons * a.terms.Horizon,
	}}, true
}

// counted keeps what the census says.
func (a *account) counted(v limiter.Verdict) {
	a.everyone = float64(censusSize-v.Remaining) / (censusHorizons * a.terms.Horizon).Seconds()
}

// ask gives how much to ask for, which can be nothing. Where there is enough, that is somewhat more than came at most, of late,
// in as much time as until the lease is there, and a horizon from then on.
func (a *account) ask(now time.Duration) int64 {
	a.divide(now)
	n := a.ahead() * a.share
	switch {
	case !a.scarce:
		n = a.demand.most() * (a.terms.Horizon + min(a.took, a.terms.Term-a.terms.Horizon)).Seconds()
		n += 2 * math.Sqrt(n)
	case a.exhausted(now):
		n = fewAhead
	case a.terms.Rate == 0 && n < fewAhead:
		a.leave(now)
		return 0
	default:
		n *= a.turn(now)
	}
	a.size = int64(math.Ceil(n))
	missing := n + a.rest
	if !a.scarce {
		missing -= float64(a.lasting(now))
	}
	asked := int64(max(0, missing))
	a.rest = min(1, missing-float64(asked))
	if asked == 0 {
		a.asking, a.due = false, now+a.pause()
	}
	return asked
}

// turn is how many horizons a share is for: those since the last one.
func (a *account) turn(now time.Duration) float64 {
	return min(max((now-a.at).Seconds()/a.terms.Horizon.Seconds(), leastTurn), mostTurn)
}

// exhausted says whether the counter has nothing left, and gets nothing before its window ends.
func (a *account) exhausted(now time.Duration) bool {
	return a.terms.Rate == 0 && a.said.RetryAfter > 0 && now-a.at < a.said.RetryAfter
}

// leave has the counter decide for a while: the last of a window is for whoever comes first.
func (a *account) leave(now time.Duration) {
	a.asking, a.scarce, a.share = false, false, 1
	a.due = now + idleHorizons*a.terms.Horizon
}

// divide divides what comes to the counter within a horizon, and a half of what it has above a reserve, by the demand of
// all. The reserve, which is what comes within a half of a horizon, has each of them get what it asks for, in whatever
// order they come; a half, since the others don't see at once what one of them takes.
func (a *account) divide(now time.Duration) {
	horizon := a.terms.Horizon.Seconds()
	coming := a.terms.Rate * horizon
	there := float64(a.said.Remaining)
	if coming > 0 {
		there = max(0, coming+(there-coming/2)/2)
	}
	ended := a.terms.Rate == 0 && now-a.at >= a.said.ResetAfter
	all := max(a.everyone, a.demand.rate) * horizon
	a.scarce, a.share = !ended && a.at > 0 && there < all, 1
	if a.scarce {
		a.share = there / all
	}
}

// granted keeps what came of asking, which was sent then.
func (a *account) granted(now, sent time.Duration, v limiter.Verdict) {
	a.said, a.at, a.asking = v, sent, false
	a.took = max(now-a.asked, a.took-a.took/8)
	a.used, a.since = 0, now
	if v.Taken > 0 {
		lasts := a.terms.Term
		if v.Lasts > 0 {
			lasts = min(lasts, v.Lasts)
		}
		a.leases = append(a.leases, lease{receipt: v.Receipt, left: v.Taken, dies: sent + lasts})
	}
	a.divide(now)
	a.due = sent + max(a.pause(), min(v.RetryAfter, recheck))
}

// pause is how long there is from one lease to the next at least. Shares are asked for at odd times: at even ones whoever
// comes right after a replica with a large share would find less each time.
func (a *account) pause() time.Duration {
	if a.scarce {
		turn := leastTurn + (mostTurn-leastTurn)*rand.Float64() //nolint:gosec // Nobody gains by guessing it.
		return time.Duration(turn * float64(a.terms.Horizon))
	}
	return a.terms.Horizon / 4
}

// failed is for asking that got no answer: until there is one the counter decides, or whoever stands in for it.
func (a *account) failed(now time.Duration) {
	a.asking, a.scarce = false, false
	a.due = now + a.terms.Horizon
}

// giveBack takes back what was used of a lease for nothing.
func (a *account) giveBack(receipt, cost int64) {
	for i := range a.leases {
		if l := &a.leases[i]; l.receipt == receipt {
			l.left += cost
			return
		}
	}
	a.leases = append(a.leases, lease{receipt: receipt, left: cost})
}

// settle takes out what can't be used any more, or won't be, and gives it as charges to refund.
func (a *account) settle(now time.Duration, owed []limiter.Charge) []limiter.Charge {
	unused := now-a.demand.last >= 2*a.terms.Horizon
	kept := a.leases[:0]
	for _, l := range a.leases {
		if !unused && now < l.dies {
			kept = append(kept, l)
			continue
		}
		if l.left > 0 {
			h := a.hit
			h.Cost = l.left
			owed = append(owed, limiter.Charge{Hit: h, Receipt: l.receipt})
		}
	}
	a.leases = kept
	return owed
}

// idle says whether nothing would be lost with the account.
func (a *account) idle(now time.Duration) bool {
	return len(a.leases) == 0 && !a.asking && now-a.demand.last >= idleHorizons*a.terms.Horizon
}

// demand is how much is asked of a counter here.
type demand struct {
	horizon time.Duration
	// rate is a second's, smoothed, and peak the most that one was of late.
	rate, peak float64
	// offered is what came since.
	offered     int64
	since, last time.Duration
	// busy and idle are for how many horizons in a row there was much, or next to nothing.
	busy, idle int
}

func (d *demand) add(now time.Duration, cost int64) {
	if passed := now - d.since; passed >= d.horizon {
		d.roll(passed)
		d.since, d.offered = now, 0
	}
	d.offered += cost
	d.last = now
}

// roll has a horizon that is over count for a third, or more if it is long over.
func (d *demand) roll(passed time.Duration) {
	const kept = 2.0 / 3
	horizons := float64(passed) / float64(d.horizon)
	rate := float64(d.offered) / passed.Seconds()
	d.rate += (rate - d.rate) * (1 - math.Pow(kept, horizons))
	d.peak = max(rate, d.peak*math.Pow(peakKept, horizons))
	switch ahead := rate * d.horizon.Seconds(); {
	case ahead >= manyAhead:
		d.busy, d.idle = d.busy+1, 0
	case ahead < fewAhead:
		d.busy, d.idle = 0, d.idle+int(horizons)
	default:
		d.busy, d.idle = 0, 0
	}
}

// most is the demand that has to be reckoned with: a process that gets no processor for a while has it all at once then.
func (d *demand) most() float64 { return min(max(d.peak, d.rate), maxPeak*d.rate) }
