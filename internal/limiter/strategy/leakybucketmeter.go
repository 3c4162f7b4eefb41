// SPDX-License-Identifier: Apache-2.0

package strategy

import "github.com/weir-dev/weir/internal/limiter"

// leakyBucketMeter spaces what it admits: after a request it admits the next when cost * window/requests
// have passed, and refuses it until then. So any time t admits at most requests/window * t and one request
// more.
//
// It is a bucket of one token that a request of a higher cost overdraws.
var leakyBucketMeter = Strategy{
	code:     5,
	layout:   14,
	smallest: 16,
	Validate: validateRate,
	Take: func(t *Taking, state []byte, now int64, l *limiter.Limit, cost, times int64) {
		takeBucket(t, loadBucket(state, now, l, 1), now, cost, l.Requests, times)
	},
	Tell: func(said []byte, now int64, l *limiter.Limit, p Place) limiter.Verdict {
		return tellBucket(loadBucket(said, now, l, 1), now, l.Requests, p)
	},
	Amend: func(t *Taking, state []byte, now int64, l *limiter.Limit, c Charge) {
		amendBucket(t, state, now, l, 1, c)
	},
	lives: livesWindow,
	params: func(p *[maxParams]float64, _ int64, l *limiter.Limit) {
		p[0], p[1], p[2], p[3] = float64(l.Requests), float64(l.Window.Microseconds()), 1, float64(l.Requests)
	},
	lua:      bucketLua,
	amendLua: amendBucketLua,
}
