// SPDX-License-Identifier: Apache-2.0

package memorystore

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestClock(t *testing.T) {
	t.Run("it tells the same as time.Now", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newClock()
			for _, d := range []time.Duration{0, time.Microsecond, 1999 * time.Nanosecond, lookEvery, time.Hour} {
				time.Sleep(d)
				if got, want := c.now(), time.Now().UnixMicro(); got != want {
					t.Errorf("after %s it is %d, not %d", d, got, want)
				}
			}
		})
	})
	t.Run("it sees soon that the machine's clock was set", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			c := newClock()
			c.seen.Store(&sight{time.Now(), time.Now().Add(time.Hour).UnixNano()})
			time.Sleep(lookEvery)
			if got, want := c.now(), time.Now().UnixMicro(); got != want {
				t.Errorf("it is %d, not %d", got, want)
			}
		})
	})
}
