// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"github.com/weir-dev/weir/internal/limiter"
)

// leakyBucketMeter spaces what it admits: after a request it admits the next when cost * window/requests
// have passed, and refuses it until then. So any time t admits at most requests/window * t and one request
// more.
//
// It is a bucket of one token that a request of a higher cost overdraws.
var leakyBucketMeter = Strategy{
	code:     5,
	layout:   5,
	Validate: validateRate,
	Take:     takeLeakyBucketMeter,
	GiveBack: giveBackLeakyBucketMeter,
	params: func(_ int64, l limiter.Limit) []int64 {
		return []int64{l.Requests, l.Window.Microseconds(), 1, l.Requests}
	},
	lua:         `return bucket`,
	giveBackLua: giveBackBucketLua,
}

func takeLeakyBucketMeter(dst, state []byte, now int64, l limiter.Limit, cost int64) (limiter.Verdict, []byte, int64) {
	return takeBucket(dst, state, now, l, cost, 1)
}

func giveBackLeakyBucketMeter(dst, state []byte, now int64, l limiter.Limit, cost int64, receipt []byte) ([]byte, int64) {
	return giveBackBucket(dst, state, now, l, cost, 1, receipt)
}
