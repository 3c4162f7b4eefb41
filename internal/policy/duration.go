// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"regexp"
	"time"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// The bounds of a window. Below the lower one the way to the store takes longer than the window.
const (
	minWindow = 10 * time.Millisecond
	maxWindow = 8784 * time.Hour
)

var durationPattern = regexp.MustCompile(`^([0-9]{1,5}(h|m|s|ms)){1,4}$`)

// parseWindow parses a GEP-2257 duration and checks that it can be a window.
func parseWindow(w v1alpha1.Window) (time.Duration, error) {
	if !durationPattern.MatchString(string(w)) {
		return 0, errors.New("must be a duration like 500ms, 1m or 1h30m")
	}
	d, err := time.ParseDuration(string(w))
	if err != nil || d < minWindow || d > maxWindow {
		return 0, errors.New("must be a duration from 10ms to 8784h")
	}
	return d, nil
}

// window gives a window that was validated.
func window(w v1alpha1.Window) time.Duration {
	d, _ := parseWindow(w)
	return d
}
