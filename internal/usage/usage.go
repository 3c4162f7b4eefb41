// SPDX-License-Identifier: Apache-2.0

// Package usage tells the manager what the sidecars enforce, and what came of it.
//
// A sidecar counts its decisions in a [Recorder], a [Reporter] leaves a [Report] in Redis each second,
// and a [Reader] of the manager collects them. Reports are about the last five minutes: the truth of all
// time is in the metrics.
package usage

import (
	"time"

	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/limiter"
)

// Window is the time that the counts of a report are about, and for which a silent sidecar is remembered.
const Window = 5 * time.Minute

// Report is what one sidecar says of itself.
type Report struct {
	Enforcer
	// Revision of the snapshot that it enforces. Zero before the first.
	Revision configstore.Revision `json:"revision"`
	// Degraded says that its counters didn't answer some request in the last ten seconds.
	Degraded bool `json:"degraded,omitempty"`
	// Ports are the numbers of the application's ports that it stands before, by the names of its listeners. It
	// is nil in reports of releases that don't tell.
	Ports map[string]int32 `json:"ports,omitempty"`
	// Reason is a word for why, as in the metric of the store's errors. It is empty where that isn't known.
	Reason string `json:"reason,omitempty"`
	// Limits are those that requests met in the last five minutes, in order of their names.
	Limits []Limit `json:"limits,omitempty"`
}

// Enforcer is who reports: one run of a sidecar.
type Enforcer struct {
	Pod string `json:"pod"`
	UID string `json:"uid,omitempty"`
	// Nonce tells the runs of a sidecar in one pod apart.
	Nonce  string            `json:"nonce"`
	Labels map[string]string `json:"labels,omitempty"`
}

// field is the enforcer's place among the reports of its namespace.
func (e Enforcer) field() string {
	if e.UID == "" {
		return e.Pod + "/" + e.Nonce
	}
	return e.UID + "/" + e.Nonce
}

// Limit is what came of the requests that one limit decided.
type Limit struct {
	Namespace string `json:"namespace"`
	Policy    string `json:"policy"`
	Limit     string `json:"limit"`
	Counts
}

func (l Limit) id() limiter.LimitID {
	return limiter.LimitID{Namespace: l.Namespace, Policy: l.Policy, Limit: l.Limit}
}

// Counts are numbers of requests by what became of them.
type Counts struct {
	Allowed      int64 `json:"allowed,omitempty"`
	Denied       int64 `json:"denied,omitempty"`
	ShadowDenied int64 `json:"shadowDenied,omitempty"`
	FailedOpen   int64 `json:"failedOpen,omitempty"`
	FailedClosed int64 `json:"failedClosed,omitempty"`
	LocalAllowed int64 `json:"localAllowed,omitempty"`
	LocalDenied  int64 `json:"localDenied,omitempty"`
	// Overflowed are those of the others that counted together, because too many keys came for each to have a counter.
	Overflowed int64 `json:"overflowed,omitempty"`
}

// plus gives c with n times o added.
func (c Counts) plus(n int64, o Counts) Counts {
	return Counts{
		Allowed:      c.Allowed + n*o.Allowed,
		Denied:       c.Denied + n*o.Denied,
		ShadowDenied: c.ShadowDenied + n*o.ShadowDenied,
		FailedOpen:   c.FailedOpen + n*o.FailedOpen,
		FailedClosed: c.FailedClosed + n*o.FailedClosed,
		LocalAllowed: c.LocalAllowed + n*o.LocalAllowed,
		LocalDenied:  c.LocalDenied + n*o.LocalDenied,
		Overflowed:   c.Overflowed + n*o.Overflowed,
	}
}

// Totals adds up what several sidecars report of each limit.
func Totals(reports []Observed) map[limiter.LimitID]Counts {
	totals := map[limiter.LimitID]Counts{}
	for _, r := range reports {
		for _, l := range r.Limits {
			totals[l.id()] = totals[l.id()].plus(1, l.Counts)
		}
	}
	return totals
}

// Rounded gives the counts to two significant digits, halves up: 18432 becomes 18000, and 99 stays as it
// is. What is rounded changes seldom, so that steady traffic writes no status.
func (c Counts) Rounded() Counts {
	return Counts{
		Allowed:      round(c.Allowed),
		Denied:       round(c.Denied),
		ShadowDenied: round(c.ShadowDenied),
		FailedOpen:   round(c.FailedOpen),
		FailedClosed: round(c.FailedClosed),
		LocalAllowed: round(c.LocalAllowed),
		LocalDenied:  round(c.LocalDenied),
		Overflowed:   round(c.Overflowed),
	}
}

func round(n int64) int64 {
	unit := int64(1)
	for n/unit >= 100 {
		unit *= 10
	}
	return (n + unit/2) / unit * unit
}
