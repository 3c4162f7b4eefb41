// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"regexp"
	"time"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// bounds are the least and the most that a duration can be.
type bounds struct {
	least, most time.Duration
	// text is both as people write them.
	text string
}

var (
	// The way to the store takes longer than a window below the least.
	windowBounds = bounds{10 * time.Millisecond, 8784 * time.Hour, "10ms to 8784h"}
	// Few clients wait for longer than the most.
	delayBounds = bounds{time.Millisecond, time.Hour, "1ms to 1h"}
	// Below the least the way to the store takes longer than a lease saves. A counter that has expired is as new, and
	// it must not be while what was leased of it is held: the store keeps it for a second longer than it has to.
	syncBounds = bounds{10 * time.Millisecond, 500 * time.Millisecond, "10ms to 500ms"}
)

var durationPattern = regexp.MustCompile(`^([0-9]{1,5}(h|m|s|ms)){1,4}$`)

// parse parses a GEP-2257 duration and checks that it is within the bounds.
func (b bounds) parse(s string) (time.Duration, error) {
	if !durationPattern.MatchString(s) {
		return 0, errors.New("must be a duration like 500ms, 1m or 1h30m")
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < b.least || d > b.most {
		return 0, errors.New("must be a duration from " + b.text)
	}
	return d, nil
}

// window gives a window that was validated.
func window(w v1alpha1.Window) time.Duration {
	d, _ := windowBounds.parse(string(w))
	return d
}

// delay gives a delay that was validated.
func delay(d v1alpha1.Duration) time.Duration {
	parsed, _ := delayBounds.parse(string(d))
	return parsed
}

// ahead gives for how long ahead a policy that was validated may take: 0 for not at all.
func ahead(d *v1alpha1.Distribution) time.Duration {
	switch {
	case d == nil:
		return 0
	case d.SyncInterval != nil: // It goes with Leased only.
		parsed, _ := syncBounds.parse(string(*d.SyncInterval))
		return parsed
	case d.Mode == v1alpha1.DistributionLeased:
		return defaultSyncInterval
	}
	return 0
}

// defaultSyncInterval has a busy replica ask ten times a second for each counter.
const defaultSyncInterval = 100 * time.Millisecond
