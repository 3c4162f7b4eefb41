// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"fmt"

	"github.com/weir-dev/weir/internal/limiter"
)

// tokenBucket admits at most burst + requests/window * t in any time t.
var tokenBucket = Strategy{
	code:     1,
	layout:   1,
	Validate: validateTokenBucket,
	Take:     takeTokenBucket,
	GiveBack: giveBackTokenBucket,
	params: func(_ int64, l limiter.Limit) []int64 {
		return []int64{l.Requests, l.Window.Microseconds(), l.Burst}
	},
	lua:         `return bucket`,
	giveBackLua: giveBackBucketLua,
}

func takeTokenBucket(dst, state []byte, now int64, l limiter.Limit, cost int64) (limiter.Verdict, []byte, int64) {
	return takeBucket(dst, state, now, l, cost, l.Burst)
}

func giveBackTokenBucket(dst, state []byte, now int64, l limiter.Limit, cost int64, receipt []byte) ([]byte, int64) {
	return giveBackBucket(dst, state, now, l, cost, l.Burst, receipt)
}

func validateTokenBucket(l limiter.Limit) error {
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
