// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"fmt"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// tokenBucket admits at most burst + requests/window * t in any time t.
var tokenBucket = Strategy{
	code:     1,
	layout:   10,
	smallest: 16,
	Validate: validateTokenBucket,
	Take: func(t *Taking, state []byte, now int64, l *limiter.Limit, cost, times int64) {
		takeBucket(t, loadBucket(state, now, l, l.Burst), now, cost, l.Burst, times)
	},
	Tell: func(said []byte, now int64, l *limiter.Limit, p Place) limiter.Verdict {
		return tellBucket(loadBucket(said, now, l, l.Burst), now, l.Burst, p)
	},
	Amend: func(t *Taking, state []byte, now int64, l *limiter.Limit, c Charge) {
		amendBucket(t, state, now, l, l.Burst, c)
	},
	lives: func(l *limiter.Limit) time.Duration { return gained(l, l.Burst) },
	params: func(p *[maxParams]float64, _ int64, l *limiter.Limit) {
		p[0], p[1], p[2], p[3] = float64(l.Requests), float64(l.Window.Microseconds()), float64(l.Burst), float64(l.Burst)
	},
	lend:     lendTokenBucket,
	lua:      bucketLua,
	amendLua: amendBucketLua,
}

// lendTokenBucket has leases taken from a bucket that is smaller by what it gains while a lease can be used. So what
// is held and what is in the bucket are never more than the burst together: since the oldest lease that is held was
// taken, the bucket lost what is held, and gained no more than it is smaller. Whoever takes for at once still has the
// whole bucket.
//
// It lends a fifth of the burst at most. A state expires when the smaller bucket is full, and is then a whole one, so
// the slack with which it expires has to make up for the difference.
func lendTokenBucket(l *limiter.Limit, ahead time.Duration) Terms {
	const part = 5
	rate := perSecond(l)
	fills := time.Duration(float64(l.Burst) / part / rate * float64(time.Second))
	horizon := min(ahead, fills*2/3).Truncate(time.Microsecond)
	term := min(termOf(horizon), fills)
	window := l.Window.Microseconds()
	gained := (l.Requests*term.Microseconds() + window - 1) / window
	if float64(gained) > rate*slack/1e6 {
		return Terms{}
	}
	t := Terms{Limit: *l, Horizon: horizon, Term: term, Rate: rate}
	t.Limit.Burst -= gained
	return t
}

func validateTokenBucket(l *limiter.Limit) error {
	if err := validateRate(l); err != nil {
		return err
	}
	if l.Burst < 1 {
		return fmt.Errorf("burst must be at least 1, not %d", l.Burst)
	}
	if l.Burst > maxRequests {
		return fmt.Errorf("burst must be at most %d, not %d", maxRequests, l.Burst)
	}
	return nil
}
