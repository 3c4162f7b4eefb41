// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"fmt"

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
	params: func(p *[maxParams]float64, _ int64, l *limiter.Limit) {
		p[0], p[1], p[2], p[3] = float64(l.Requests), float64(l.Window.Microseconds()), float64(l.Burst), float64(l.Burst)
	},
	lua:      bucketLua,
	amendLua: amendBucketLua,
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
