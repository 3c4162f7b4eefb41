// SPDX-License-Identifier: Apache-2.0

package limiter

import (
	"context"
	"slices"
	"time"
)

// Outcome is what became of a request under one limit. Its words are those of the outcome label of
// weir_decisions_total.
type Outcome string

// The outcomes. A limit that would have admitted a request which another limit refused has none.
const (
	Allowed      Outcome = "allowed"
	Denied       Outcome = "denied"
	ShadowDenied Outcome = "shadow_denied"
	FailedOpen   Outcome = "failed_open"
	FailedClosed Outcome = "failed_closed"
)

// Recorder is told every outcome. Record is called on the way of every request: it has to be quick and
// safe for concurrent use.
type Recorder interface {
	Record(id LimitID, outcome Outcome)
}

// Decision is the answer to one request.
type Decision struct {
	// Allowed says whether the request may pass.
	Allowed bool
	// Hits are those that a counter was asked about, and Verdicts what it said of each. Both are nil
	// when no counter was asked or none could answer.
	Hits     []Hit
	Verdicts []Verdict
	// By is the hit that refused: the one that the client has to wait for the longest. Nil when Allowed.
	By *Hit
	// RetryAfter is how long the client has to wait, or [Never]. Zero when Allowed, and when Err is set.
	RetryAfter time.Duration
	// Err is why the store couldn't answer; the hits' failure modes have then decided.
	Err error
}

// Engine decides requests. It is safe for concurrent use.
type Engine struct {
	store    Store
	recorder Recorder
}

// NewEngine gives an engine that counts in store and tells recorder every outcome.
func NewEngine(store Store, recorder Recorder) *Engine {
	return &Engine{store: store, recorder: recorder}
}

// Decide decides one request by its hits. No hits allow it.
func (e *Engine) Decide(ctx context.Context, hits []Hit) Decision {
	for i := range hits {
		if hits[i].Deny && !hits[i].Shadow {
			e.recorder.Record(hits[i].ID, Denied)
			return Decision{By: &hits[i], RetryAfter: Never}
		}
	}
	counted := e.countable(hits)
	if len(counted) == 0 {
		return Decision{Allowed: true}
	}
	verdicts, err := e.store.Take(ctx, counted)
	if err != nil {
		return e.fail(counted, err)
	}
	return e.answer(counted, verdicts)
}

// countable leaves out the shadow hits that no counter can be asked about.
func (e *Engine) countable(hits []Hit) []Hit {
	deny := func(h Hit) bool { return h.Deny }
	if !slices.ContainsFunc(hits, deny) {
		return hits
	}
	counted := make([]Hit, 0, len(hits))
	for _, h := range hits {
		if h.Deny {
			e.recorder.Record(h.ID, ShadowDenied)
			continue
		}
		counted = append(counted, h)
	}
	return counted
}

// answer makes the store's verdicts a decision.
func (e *Engine) answer(hits []Hit, verdicts []Verdict) Decision {
	d := Decision{Allowed: true, Hits: hits, Verdicts: verdicts}
	for i, v := range verdicts {
		if v.Allowed || hits[i].Shadow || v == (Verdict{}) {
			continue
		}
		e.recorder.Record(hits[i].ID, Denied)
		if d.Allowed || longer(v.RetryAfter, d.RetryAfter) {
			d.Allowed, d.By, d.RetryAfter = false, &hits[i], v.RetryAfter
		}
	}
	if !d.Allowed {
		d.Hits, d.Verdicts = known(hits, verdicts)
		return d
	}
	for i, v := range verdicts {
		if v.Allowed {
			e.recorder.Record(hits[i].ID, Allowed)
		} else {
			e.recorder.Record(hits[i].ID, ShadowDenied)
		}
	}
	return d
}

// known leaves out the hits of which nothing is known.
func known(hits []Hit, verdicts []Verdict) ([]Hit, []Verdict) {
	if !slices.Contains(verdicts, Verdict{}) {
		return hits, verdicts
	}
	var (
		asked []Hit
		said  []Verdict
	)
	for i, v := range verdicts {
		if v != (Verdict{}) {
			asked, said = append(asked, hits[i]), append(said, v)
		}
	}
	return asked, said
}

// fail decides without the store: one closed limit refuses, else all admit.
func (e *Engine) fail(hits []Hit, err error) Decision {
	for i := range hits {
		if hits[i].OnFailure == FailClosed && !hits[i].Shadow {
			e.recorder.Record(hits[i].ID, FailedClosed)
			return Decision{By: &hits[i], Err: err}
		}
	}
	for i := range hits {
		e.recorder.Record(hits[i].ID, FailedOpen)
	}
	return Decision{Allowed: true, Err: err}
}

// longer compares two waits, [Never] being the longest.
func longer(a, b time.Duration) bool {
	if a == Never || b == Never {
		return a == Never && b != Never
	}
	return a > b
}
