// SPDX-License-Identifier: Apache-2.0

package limiter

import (
	"fmt"
	"sync"
	"time"
)

// Calendar says which days, weeks, months or years are windows. It is comparable.
type Calendar struct {
	Unit Unit `json:"unit"`
	// TimeZone is a name of the IANA database, like Europe/Berlin.
	TimeZone string `json:"timeZone"`
}

// Unit is how long a window of a calendar is.
type Unit string

// The units. A week starts on Monday.
const (
	Day   Unit = "Day"
	Week  Unit = "Week"
	Month Unit = "Month"
	Year  Unit = "Year"
)

// locations has the time zones that were asked for and exist: to read one takes a thousand times as long as
// to decide a request.
var locations sync.Map

// Location gives the calendar's time zone, or an error that says what is wrong with its name.
func (c Calendar) Location() (*time.Location, error) {
	if known, ok := locations.Load(c.TimeZone); ok {
		return known.(*time.Location), nil
	}
	// To Go these are UTC and the zone of this machine, and another machine may be elsewhere.
	unnamed := c.TimeZone == "" || c.TimeZone == "Local"
	location, err := time.LoadLocation(c.TimeZone)
	if unnamed || err != nil {
		return nil, fmt.Errorf("timeZone must be a name of the IANA database, like Europe/Berlin, not %q", c.TimeZone)
	}
	locations.Store(c.TimeZone, location)
	return location, nil
}
