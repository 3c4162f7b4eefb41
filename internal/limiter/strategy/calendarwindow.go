// SPDX-License-Identifier: Apache-2.0

package strategy

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
)

// calendarWindow admits at most requests in each day, week, month or year of a time zone. One starts when the
// clocks there first show its midnight, or later where they skip it: a day can have 23 or 25 hours.
//
// Redis knows nothing of time zones. So the caller gives consecutive starts around its own time, and Redis picks
// the window by its clock: all callers agree on it, however wrong theirs are. To one that gives no window around
// that time, Redis says so. The state is that of fixedWindow, which can so become a calendar's and keep its count.
var calendarWindow = Strategy{
	code:     6,
	layout:   fixedWindow.layout,
	smallest: 16,
	Validate: validateCalendar,
	Take: func(t *Taking, state []byte, now int64, l *limiter.Limit, cost, times int64) {
		takeWindow(t, loadCalendarWindow(state, now, l), now, l, cost, times)
	},
	Tell: func(said []byte, now int64, l *limiter.Limit, p Place) limiter.Verdict {
		return tellWindow(loadCalendarWindow(said, now, l), now, l, p)
	},
	Amend: amendWindow,
	lives: func(l *limiter.Limit) time.Duration { return longestUnit[l.Calendar.Unit] },
	params: func(p *[maxParams]float64, now int64, l *limiter.Limit) {
		p[0] = float64(l.Requests)
		for i, start := range startsAround(l.Calendar, now) {
			p[1+i] = float64(start)
		}
	},
	lend: func(l *limiter.Limit, ahead time.Duration) Terms { return lendOf(l, shortestDay, ahead) },
	ends: endsWindow,
	lua: `local requests, first, second, third, fourth, fifth = ...
local finish, latest
if now < first or now >= fourth then
  stale = true
  return function() return 0 end
elseif now < second then
  finish, latest = second, third
elseif now < third then
  finish, latest = third, fourth
else
  finish, latest = fourth, fifth
end
if finish - now > GRACE then latest = finish end
` + windowLua,
	amendLua: amendWindowLua,
}

// shortestDay is no longer than any window.
const shortestDay = 22 * time.Hour

// longestUnit has what no window of a unit is longer than: clocks are set back in some, by two hours at most.
var longestUnit = map[limiter.Unit]time.Duration{
	limiter.Day:   day + 2*time.Hour,
	limiter.Week:  7*day + 2*time.Hour,
	limiter.Month: 31*day + 2*time.Hour,
	limiter.Year:  366*day + 2*time.Hour,
}

const day = 24 * time.Hour

func loadCalendarWindow(state []byte, now int64, l *limiter.Limit) window {
	s := startsAround(l.Calendar, now)
	finish, latest := s[2], s[3]
	if finish-now > grace {
		latest = finish
	}
	return loadWindow(state, now, finish, latest)
}

func validateCalendar(l *limiter.Limit) error {
	switch l.Calendar.Unit {
	case limiter.Day, limiter.Week, limiter.Month, limiter.Year:
	default:
		return fmt.Errorf("unit must be one of Day, Week, Month, Year, not %q", l.Calendar.Unit)
	}
	if _, err := l.Calendar.Location(); err != nil {
		return err
	}
	return validateRequests(l)
}

// known has the starts that were last worked out for each calendar: that takes longer than to decide a request.
var known sync.Map

// startsAround gives when the windows start: the one before the current one, the current one, and the next three.
// Times are microseconds since the Unix epoch. The calendar has to be valid, or everything is zero.
func startsAround(c limiter.Calendar, now int64) [5]int64 {
	if s, ok := known.Load(c); ok {
		if starts := s.([5]int64); starts[1] <= now && now < starts[2] {
			return starts
		}
	}
	zone, err := c.Location()
	if err != nil {
		return [5]int64{}
	}
	starts := workOut(c.Unit, zone, now)
	known.Store(c, starts)
	return starts
}

func workOut(u limiter.Unit, zone *time.Location, now int64) [5]int64 {
	today := time.UnixMicro(now).In(zone)
	var starts []int64
	// Dates that were skipped start with the next one, and a clock that is set back at midnight shows a date again
	// whose next one has started: so it takes a look at more than five.
	for n := -3; len(starts) < 5; n++ {
		start := firstShown(date(u, today, n), zone).UnixMicro()
		switch {
		case slices.Contains(starts, start):
		case len(starts) == 2 && start <= now:
			starts = []int64{starts[1], start}
		default:
			starts = append(starts, start)
		}
	}
	return [5]int64(starts)
}

// date gives the first day of the unit that is n after that of a time. It has the date alone: it is in UTC.
func date(u limiter.Unit, t time.Time, n int) time.Time {
	year, month, day := t.Date()
	switch u {
	case limiter.Week:
		sinceMonday := (int(t.Weekday()) + 6) % 7
		day += 7*n - sinceMonday
	case limiter.Month:
		month, day = month+time.Month(n), 1
	case limiter.Year:
		year, month, day = year+n, time.January, 1
	default:
		day += n
	}
	return time.Date(year, month, day, 0, 0, 0, 0, time.UTC)
}

// firstShown gives the first moment at which clocks in a zone show midnight of a date, or later. No clock is a day
// off UTC, and none is changed twice in two days.
func firstShown(midnight time.Time, zone *time.Location) time.Time {
	before, after := offset(midnight.Add(-day), zone), offset(midnight.Add(day), zone)
	unchanged, changed := midnight.Add(-before), midnight.Add(-after)
	switch {
	case offset(unchanged, zone) == before:
		return unchanged
	case offset(changed, zone) == after:
		return changed
	}
	// The change skips midnight.
	start, _ := unchanged.In(zone).ZoneBounds()
	return start
}

// offset says how far clocks in a zone are ahead of UTC.
func offset(t time.Time, zone *time.Location) time.Duration {
	_, seconds := t.In(zone).Zone()
	return time.Duration(seconds) * time.Second
}
