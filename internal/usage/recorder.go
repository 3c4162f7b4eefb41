// SPDX-License-Identifier: Apache-2.0

package usage

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/match"
)

const (
	// sampleInterval is how far apart the samples are that make up the window: 30 of them.
	sampleInterval = 10 * time.Second
	// degradedFor is how long a failure of the store is told of.
	degradedFor = 10 * time.Second
)

// outcomes are those that are counted, in the order of the counters.
var outcomes = [...]limiter.Outcome{
	limiter.Allowed, limiter.Denied, limiter.ShadowDenied, limiter.FailedOpen, limiter.FailedClosed,
	limiter.LocalAllowed, limiter.LocalDenied,
}

// degraded says whether an outcome is one without the store.
func degraded(o limiter.Outcome) bool {
	switch o {
	case limiter.FailedOpen, limiter.FailedClosed, limiter.LocalAllowed, limiter.LocalDenied:
		return true
	default:
		return false
	}
}

// counters count what came of one limit, since it is known.
type counters struct {
	outcomes   [len(outcomes)]atomic.Int64
	overflowed atomic.Int64
	// keyed says that the limit has a key, and so can overflow.
	keyed atomic.Bool
}

func (c *counters) counts() Counts {
	return Counts{
		Allowed:      c.outcomes[0].Load(),
		Denied:       c.outcomes[1].Load(),
		ShadowDenied: c.outcomes[2].Load(),
		FailedOpen:   c.outcomes[3].Load(),
		FailedClosed: c.outcomes[4].Load(),
		LocalAllowed: c.outcomes[5].Load(),
		LocalDenied:  c.outcomes[6].Load(),
		Overflowed:   c.overflowed.Load(),
	}
}

// Recorder is a [limiter.Recorder]: it counts outcomes, for reports and for metrics. As a
// [prometheus.Collector] it gives weir_decisions_total and weir_overflow_decisions_total, of all time.
type Recorder struct {
	// limits is replaced, never changed, so that Record needs no lock.
	limits atomic.Pointer[map[limiter.LimitID]*counters]
	// failed is when the store last couldn't answer, in nanoseconds since 1970. Zero is never.
	failed atomic.Int64
	// mu guards samples, and replacing limits.
	mu sync.Mutex
	// samples are in order of time, and as old as the window needs.
	samples []sample
}

// sample is what was counted until then.
type sample struct {
	at     time.Time
	counts map[limiter.LimitID]Counts
}

// NewRecorder gives a recorder that knows no limits yet.
func NewRecorder() *Recorder {
	r := &Recorder{}
	r.limits.Store(&map[limiter.LimitID]*counters{})
	return r
}

// Record implements [limiter.Recorder]. A limit that [Recorder.Keep] hasn't told of is counted too.
func (r *Recorder) Record(id limiter.LimitID, outcome limiter.Outcome) {
	if degraded(outcome) {
		r.failed.Store(time.Now().UnixNano())
	}
	if i := slices.Index(outcomes[:], outcome); i >= 0 {
		r.of(id).outcomes[i].Add(1)
	}
}

// Overflow counts a hit on the counter that a limit has for the keys without one of their own. The hit has an outcome
// as well.
func (r *Recorder) Overflow(id limiter.LimitID) { r.of(id).overflowed.Add(1) }

// of gives the counters of a limit.
func (r *Recorder) of(id limiter.LimitID) *counters {
	if c, known := (*r.limits.Load())[id]; known {
		return c
	}
	return r.add(id)
}

// add makes the recorder know a limit.
func (r *Recorder) add(id limiter.LimitID) *counters {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := *r.limits.Load()
	if c, ok := known[id]; ok {
		return c
	}
	limits := maps.Clone(known)
	limits[id] = new(counters)
	r.limits.Store(&limits)
	return limits[id]
}

// Keep makes the limits of these policies the known ones, and forgets the counts of all others. It is
// called with each new snapshot, so that deleted limits don't add up.
func (r *Recorder) Keep(policies []match.Policy) {
	r.mu.Lock()
	defer r.mu.Unlock()
	known := *r.limits.Load()
	limits := map[limiter.LimitID]*counters{}
	for _, p := range policies {
		for _, l := range p.Limits {
			id := limiter.LimitID{Namespace: p.Namespace, Policy: p.Name, Limit: l.Name}
			limits[id] = known[id]
			if limits[id] == nil {
				limits[id] = new(counters)
			}
			limits[id].keyed.Store(len(l.Key) > 0)
		}
	}
	r.limits.Store(&limits)
	// A limit that comes back starts at zero: what was sampled of its former life must not count.
	for _, s := range r.samples {
		maps.DeleteFunc(s.counts, func(id limiter.LimitID, _ Counts) bool { return limits[id] == nil })
	}
}

// Degraded says whether the store couldn't answer in the ten seconds before now.
func (r *Recorder) Degraded(now time.Time) bool {
	failed := r.failed.Load()
	return failed != 0 && now.Sub(time.Unix(0, failed)) < degradedFor
}

// Recent gives the limits that had requests in the five minutes before now, in order of their names. It
// has to be called more often than every ten seconds, with times that grow: what was counted between two
// calls is taken to have come evenly.
func (r *Recorder) Recent(now time.Time) []Limit {
	r.mu.Lock()
	defer r.mu.Unlock()
	total := r.total()
	start := now.Add(-Window)
	r.forgetBefore(start)
	var limits []Limit
	for id, counts := range total {
		recent := counts.plus(-1, r.until(start, id))
		if recent != (Counts{}) {
			limits = append(limits, Limit{Namespace: id.Namespace, Policy: id.Policy, Limit: id.Limit, Counts: recent})
		}
	}
	if n := len(r.samples); n == 0 || now.Sub(r.samples[n-1].at) >= sampleInterval {
		r.samples = append(r.samples, sample{at: now, counts: total})
	}
	slices.SortFunc(limits, func(a, b Limit) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Policy, b.Policy), cmp.Compare(a.Limit, b.Limit))
	})
	return limits
}

// total gives all counts of all time.
func (r *Recorder) total() map[limiter.LimitID]Counts {
	total := map[limiter.LimitID]Counts{}
	for id, c := range *r.limits.Load() {
		total[id] = c.counts()
	}
	return total
}

// forgetBefore drops the samples from before start, but for the last, which start is measured from.
func (r *Recorder) forgetBefore(start time.Time) {
	for len(r.samples) > 1 && !r.samples[1].at.After(start) {
		r.samples = slices.Delete(r.samples, 0, 1)
	}
}

// until gives what was counted of a limit until start: between the two samples around it, in proportion.
func (r *Recorder) until(start time.Time, id limiter.LimitID) Counts {
	if len(r.samples) == 0 || r.samples[0].at.After(start) {
		return Counts{}
	}
	first := r.samples[0].counts[id]
	if len(r.samples) == 1 {
		return first
	}
	grown := r.samples[1].counts[id].plus(-1, first)
	part := float64(start.Sub(r.samples[0].at)) / float64(r.samples[1].at.Sub(r.samples[0].at))
	return first.plus(1, grown.scaled(part))
}

// scaled gives this part of the counts, rounded down.
func (c Counts) scaled(part float64) Counts {
	scale := func(n int64) int64 { return int64(part * float64(n)) }
	return Counts{
		Allowed:      scale(c.Allowed),
		Denied:       scale(c.Denied),
		ShadowDenied: scale(c.ShadowDenied),
		FailedOpen:   scale(c.FailedOpen),
		FailedClosed: scale(c.FailedClosed),
		LocalAllowed: scale(c.LocalAllowed),
		LocalDenied:  scale(c.LocalDenied),
		Overflowed:   scale(c.Overflowed),
	}
}

var (
	decisions = prometheus.NewDesc("weir_decisions_total",
		"Requests that a limit decided, by what became of them.",
		[]string{"namespace", "policy", "limit", "outcome"}, nil)
	overflows = prometheus.NewDesc("weir_overflow_decisions_total",
		"Requests that a limit decided by the counter that keys share which have none of their own, because too many keys came.",
		[]string{"namespace", "policy", "limit"}, nil)
)

// Describe implements [prometheus.Collector].
func (r *Recorder) Describe(descs chan<- *prometheus.Desc) {
	descs <- decisions
	descs <- overflows
}

// Collect implements [prometheus.Collector]. A limit has all its outcomes from the start, so that an
// alert sees the first failure too.
func (r *Recorder) Collect(metrics chan<- prometheus.Metric) {
	for id, c := range *r.limits.Load() {
		for i, outcome := range outcomes {
			n := float64(c.outcomes[i].Load())
			metrics <- prometheus.MustNewConstMetric(decisions, prometheus.CounterValue, n, id.Namespace, id.Policy, id.Limit, string(outcome))
		}
		if c.keyed.Load() {
			n := float64(c.overflowed.Load())
			metrics <- prometheus.MustNewConstMetric(overflows, prometheus.CounterValue, n, id.Namespace, id.Policy, id.Limit)
		}
	}
}
