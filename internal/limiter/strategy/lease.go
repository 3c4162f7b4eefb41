// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// Terms are those on which a part of a counter may be taken now and used later, so that no more is admitted at
// any time than if each request had been taken when it came. The zero value says that nothing may.
type Terms struct {
	// Limit is what a lease is taken under: a part of the limit that it is of.
	Limit limiter.Limit
	// Horizon is for how long ahead to take, and Term how long after it was taken a lease may be used.
	Horizon, Term time.Duration
	// Rate is what a second gives to a counter that has nothing left. Zero where that is nothing before a window ends.
	Rate float64
}

const (
	// leastHorizon is that below which the way to the store takes as long as a lease saves.
	leastHorizon = 5 * time.Millisecond
	// leastCapacity is that below which enforcers take more from each other than they save.
	leastCapacity = 20
	// stall is how long a busy machine may give an enforcer no processor, without its leases ending by that.
	stall = 20 * time.Millisecond
)

// Lease gives the terms on which a limit can be leased that wants to be, and false for one that can't be: each
// request of it has to be taken when it comes.
func Lease(l *limiter.Limit) (Terms, bool) {
	if !Leasable(l.Algorithm) || l.Lease <= 0 || l.Capacity() < leastCapacity {
		return Terms{}, false
	}
	t := of(l.Algorithm).lend(l, l.Lease)
	t.Limit.Lease = 0
	return t, t.Horizon >= leastHorizon
}

// Leasable says whether limits of an algorithm can be leased at all.
func Leasable(a limiter.Algorithm) bool {
	s := of(a)
	return s != nil && s.lend != nil
}

// termOf gives how long a lease for a horizon can be used. It is longer, because the next one is taken before it is used
// up, and may come late.
func termOf(horizon time.Duration) time.Duration { return horizon + max(horizon/2, stall) }

// lendOf gives the terms of a lease of a window, or a slot of one, that is so long. They are short beside it: what is
// not used when it ends is lost.
func lendOf(l *limiter.Limit, length, ahead time.Duration) Terms {
	horizon := min(ahead, length/4).Truncate(time.Microsecond)
	return Terms{Limit: *l, Horizon: horizon, Term: termOf(horizon)}
}

// gaining gives the terms for a window that slides: what was taken leaves it about as steadily as it came.
func gaining(t Terms) Terms {
	t.Rate = perSecond(&t.Limit)
	return t
}

// perSecond gives the requests of a limit in a second.
func perSecond(l *limiter.Limit) float64 { return float64(l.Requests) / l.Window.Seconds() }
