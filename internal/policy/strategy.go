// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"time"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/limiter"
)

// parameters gives the parameters of the one strategy that is set.
func parameters(s v1alpha1.Strategy) limiter.Limit {
	switch {
	case s.TokenBucket != nil:
		b := s.TokenBucket
		l := rate(limiter.TokenBucket, b.Requests, b.Window)
		l.Burst = int64(*cmp.Or(b.Burst, &b.Requests))
		return l
	case s.SlidingWindow != nil:
		w := s.SlidingWindow
		return rate(precisions[cmp.Or(w.Precision, precisionRing)], w.Requests, w.Window)
	case s.LeakyBucket != nil && s.LeakyBucket.Mode == modeMeter:
		return rate(limiter.LeakyBucketMeter, s.LeakyBucket.Requests, s.LeakyBucket.Window)
	case s.LeakyBucket != nil:
		return queue(s.LeakyBucket)
	case s.Concurrency != nil:
		return limiter.Limit{Algorithm: limiter.Concurrency, Requests: int64(s.Concurrency.MaxInFlight), Window: permitTerm}
	case s.FixedWindow.Calendar != nil:
		return limiter.Limit{
			Algorithm: limiter.CalendarWindow,
			Requests:  int64(s.FixedWindow.Requests),
			Calendar:  calendar(s.FixedWindow.Calendar),
		}
	}
	return rate(limiter.FixedWindow, s.FixedWindow.Requests, *s.FixedWindow.Window)
}

// permitTerm is how long a permit of a concurrency limit lasts that nobody renews: what a crashed enforcer held
// is free again after that. Enforcers renew theirs several times in it, so that a store which is away for some
// seconds takes none from a request under way.
const permitTerm = 10 * time.Second

// precisions are the algorithms of sliding windows.
var precisions = map[string]limiter.Algorithm{
	precisionRing:        limiter.SlidingWindowRing,
	precisionLog:         limiter.SlidingWindowLog,
	precisionApproximate: limiter.SlidingWindowApproximate,
}

// queue has no bound by number unless there is a maxQueue: the delay bounds it.
func queue(b *v1alpha1.LeakyBucket) limiter.Limit {
	l := rate(limiter.LeakyBucketQueue, b.Requests, b.Window)
	l.MaxDelay = delay(maxDelay(b))
	if b.MaxQueue != nil {
		l.MaxQueue = int64(*b.MaxQueue)
	}
	return l
}

// maxDelay can't have its default from the schema, which would give one to a meter, too.
func maxDelay(b *v1alpha1.LeakyBucket) v1alpha1.Duration {
	if b.MaxDelay == nil {
		return defaultMaxDelay
	}
	return *b.MaxDelay
}

// defaultMaxDelay is shorter than the time after which most clients and proxies give up.
const defaultMaxDelay v1alpha1.Duration = "10s"

func rate(a limiter.Algorithm, requests v1alpha1.Requests, w v1alpha1.Window) limiter.Limit {
	return limiter.Limit{Algorithm: a, Requests: int64(requests), Window: window(w)}
}

func calendar(c *v1alpha1.Calendar) limiter.Calendar {
	return limiter.Calendar{Unit: limiter.Unit(c.Unit), TimeZone: cmp.Or(c.TimeZone, "UTC")}
}
