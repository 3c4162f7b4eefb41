// SPDX-License-Identifier: Apache-2.0

package strategy_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// calendars draws the windows of a zone that does unusual things to its clocks.
func calendars(rt *rapid.T) limiter.Calendar {
	units := []limiter.Unit{limiter.Day, limiter.Week, limiter.Month, limiter.Year}
	zones := []string{"UTC", "Europe/Berlin", "America/Sao_Paulo", "Australia/Lord_Howe", "Pacific/Apia"}
	return limiter.Calendar{
		Unit:     rapid.SampledFrom(units).Draw(rt, "unit"),
		TimeZone: rapid.SampledFrom(zones).Draw(rt, "zone"),
	}
}

// calendarLimits draws parameters of a calendar's windows. Their length is only that of the steps to play.
func calendarLimits(rt *rapid.T) limiter.Limit {
	return limiter.Limit{
		Algorithm: limiter.CalendarWindow,
		Requests:  rapid.Int64Range(1, 20).Draw(rt, "requests"),
		Window:    24 * time.Hour,
		Calendar:  calendars(rt),
	}
}

// page names the window that a moment is in as people in the zone would: it reads the date off their clocks.
func page(rt *rapid.T, c limiter.Calendar, at int64) string {
	zone, err := time.LoadLocation(c.TimeZone)
	if err != nil {
		rt.Fatal(err)
	}
	t := time.UnixMicro(at).In(zone)
	switch c.Unit {
	case limiter.Week:
		year, week := t.ISOWeek()
		return fmt.Sprint(year, " week ", week)
	case limiter.Month:
		return t.Format("2006-01")
	case limiter.Year:
		return t.Format("2006")
	}
	return t.Format(time.DateOnly)
}

// oddities are when clocks were changed: in Berlin, at midnight in Sao Paulo, by half an hour on Lord Howe, and
// by a whole day in Apia.
var oddities = []time.Time{
	time.Date(2026, time.March, 29, 1, 0, 0, 0, time.UTC),
	time.Date(2026, time.October, 25, 1, 0, 0, 0, time.UTC),
	time.Date(2018, time.February, 18, 2, 0, 0, 0, time.UTC),
	time.Date(2018, time.November, 4, 3, 0, 0, 0, time.UTC),
	time.Date(2026, time.April, 4, 15, 0, 0, 0, time.UTC),
	time.Date(2011, time.December, 30, 10, 0, 0, 0, time.UTC),
}

func TestCalendarWindowBound(t *testing.T) {
	for name, back := range map[string]int64{
		"no page of a calendar admits more than its requests":                                 0,
		"no page of a calendar admits more than its requests when the clock is back a little": 1_000_000,
	} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				l := calendarLimits(rt)
				start := rapid.SampledFrom(oddities).Draw(rt, "around").UnixMicro()
				start += rapid.Int64Range(-200, 200).Draw(rt, "hours") * time.Hour.Microseconds()
				taken, latest := map[string]int64{}, int64(0)
				for _, e := range playFrom(rt, start, l, back) {
					if e.verdict.Allowed {
						// A counter has no other way to know what was before.
						latest = max(latest, e.at)
						taken[page(rt, l.Calendar, latest)] += e.cost
					}
				}
				for name, n := range taken {
					if n > l.Requests {
						rt.Errorf("%s admits %d", name, n)
					}
				}
			})
		})
	}
	t.Run("a window ends when the clocks show another page, and not before", func(t *testing.T) {
		rapid.Check(t, func(rt *rapid.T) {
			l := calendarLimits(rt)
			now := rapid.SampledFrom(oddities).Draw(rt, "around").UnixMicro()
			now += rapid.Int64Range(-100*3600, 100*3600).Draw(rt, "seconds") * 1_000_000
			end := now + peek(strategy.Counter{}, now, l, 0).ResetAfter.Microseconds()
			here, last, next := page(rt, l.Calendar, now), page(rt, l.Calendar, end-1), page(rt, l.Calendar, end)
			if last != here || next == here {
				rt.Errorf("the window of %s ends between %s and %s", here, last, next)
			}
		})
	})
}

func TestCalendarWindows(t *testing.T) {
	tests := map[string]struct {
		calendar limiter.Calendar
		start    string
		hours    []float64
	}{
		"a day of UTC has 24 hours":                           {limiter.Calendar{Unit: limiter.Day, TimeZone: "UTC"}, "2026-03-29T00:00:00Z", []float64{24, 24}},
		"the day on which summer starts has 23 hours":         {limiter.Calendar{Unit: limiter.Day, TimeZone: "Europe/Berlin"}, "2026-03-28T23:00:00Z", []float64{23, 24}},
		"the day on which summer ends has 25 hours":           {limiter.Calendar{Unit: limiter.Day, TimeZone: "Europe/Berlin"}, "2026-10-24T22:00:00Z", []float64{25, 24}},
		"a day without midnight starts an hour later":         {limiter.Calendar{Unit: limiter.Day, TimeZone: "America/Sao_Paulo"}, "2018-11-03T03:00:00Z", []float64{24, 23, 24}},
		"a day whose last hour comes twice has 25 hours":      {limiter.Calendar{Unit: limiter.Day, TimeZone: "America/Sao_Paulo"}, "2018-02-17T02:00:00Z", []float64{25, 24}},
		"an end of a leap year is a day like any other":       {limiter.Calendar{Unit: limiter.Day, TimeZone: "Europe/Berlin"}, "2040-12-29T23:00:00Z", []float64{24, 24, 24}},
		"a day on which midnight comes twice starts at once":  {limiter.Calendar{Unit: limiter.Day, TimeZone: "America/Havana"}, "2026-10-31T04:00:00Z", []float64{24, 25, 24}},
		"a date that comes back doesn't end the one after it": {limiter.Calendar{Unit: limiter.Day, TimeZone: "America/St_Johns"}, "2006-10-28T02:30:00Z", []float64{24, 25, 24}},
		"summer can be half an hour":                          {limiter.Calendar{Unit: limiter.Day, TimeZone: "Australia/Lord_Howe"}, "2026-04-04T13:00:00Z", []float64{24.5, 24}},
		"a day that was skipped is no window":                 {limiter.Calendar{Unit: limiter.Day, TimeZone: "Pacific/Apia"}, "2011-12-28T10:00:00Z", []float64{24, 24, 24}},
		"a week starts on Monday":                             {limiter.Calendar{Unit: limiter.Week, TimeZone: "Europe/Berlin"}, "2026-03-22T23:00:00Z", []float64{7*24 - 1, 7 * 24}},
		"a month is as long as it is":                         {limiter.Calendar{Unit: limiter.Month, TimeZone: "UTC"}, "2028-01-01T00:00:00Z", []float64{31 * 24, 29 * 24, 31 * 24}},
		"a year is as long as it is":                          {limiter.Calendar{Unit: limiter.Year, TimeZone: "Europe/Berlin"}, "2027-12-31T23:00:00Z", []float64{366 * 24, 365 * 24}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			now, err := time.Parse(time.RFC3339, test.start)
			if err != nil {
				t.Fatal(err)
			}
			l := limiter.Limit{Algorithm: limiter.CalendarWindow, Requests: 1, Calendar: test.calendar}
			var got []float64
			for range test.hours {
				left := peek(strategy.Counter{}, now.UnixMicro(), l, 0).ResetAfter
				if before := peek(strategy.Counter{}, now.UnixMicro()-1, l, 0).ResetAfter; before != time.Microsecond {
					t.Errorf("a microsecond before %s, %s are left", now, before)
				}
				got, now = append(got, left.Hours()), now.Add(left)
			}
			if diff := cmp.Diff(test.hours, got); diff != "" {
				t.Errorf("hours (-want +got):\n%s", diff)
			}
		})
	}
}
