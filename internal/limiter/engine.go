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
	// Left says that the request's context ended while it was held for its turn in a queue. It must not pass, no
	// limit refused it, what it was charged was given back, and no limit has an outcome of it.
	Left bool
	// Hits are those that a counter was asked about, and Verdicts what it said of each. Both are nil
	// when no counter was asked or none could answer. Where permits were refused after the turn in a queue, they
	// are about the permits only: all else was given back.
	Hits     []Hit
	Verdicts []Verdict
	// By is the hit that refused: the one that the client has to wait for the longest. Nil when Allowed or Left.
	By *Hit
	// RetryAfter is how long the client has to wait, or [Never]. Zero when Allowed, and when Err is set.
	RetryAfter time.Duration
	// Waited is how long the request was held for its turn in a queue. Zero when no queue had a slot for it.
	Waited time.Duration
	// Err is why the store couldn't answer; the hits' failure modes have then decided.
	Err error

	permits *holding
}

// Engine decides requests. It is safe for concurrent use.
type Engine struct {
	store    Store
	recorder Recorder
	lines    lines
	permits  permits
}

// NewEngine gives an engine that counts in store and tells recorder every outcome. Its [Engine.Run] has to run
// where limits of [Concurrency] are.
func NewEngine(store Store, recorder Recorder) *Engine {
	return &Engine{store: store, recorder: recorder, lines: newLines(), permits: newPermits()}
}

// Decide decides one request by its hits. No hits allow it.
//
// Where queues have slots for the request, Decide holds it until the last of them, and requests that wait for one
// counter go on in the order of their slots. Permits of [Concurrency] are taken after that, and are the request's
// until [Decision.Release], which must be called at its end, however it ends. Shadow hits hold nobody, but their
// permits are taken and given back like all.
//
// Ctx is the request's. When it ends, the request waits no longer, and gives back what it took. But a question to
// the store is asked to its end: who hangs up has asked all the same, and is no failure of the store.
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
	if some(counted, (*Hit).outlasts) {
		return e.decideInTurn(ctx, counted)
	}
	verdicts, err := e.store.Take(context.WithoutCancel(ctx), counted)
	if err != nil {
		return e.fail(counted, err)
	}
	if d, refused := e.refuse(counted, verdicts); refused {
		return d
	}
	return e.admit(counted, verdicts)
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

// refuse refuses a request if one of the verdicts does.
func (e *Engine) refuse(hits []Hit, verdicts []Verdict) (d Decision, refused bool) {
	for i, v := range verdicts {
		if v.Allowed || hits[i].Shadow || v == (Verdict{}) {
			continue
		}
		e.recorder.Record(hits[i].ID, Denied)
		if d.By == nil || longer(v.RetryAfter, d.RetryAfter) {
			d.By, d.RetryAfter = &hits[i], v.RetryAfter
		}
	}
	if d.By == nil {
		return Decision{}, false
	}
	d.Hits, d.Verdicts = known(hits, verdicts)
	return d, true
}

// admit lets a request through.
func (e *Engine) admit(hits []Hit, verdicts []Verdict) Decision {
	for i, v := range verdicts {
		if v.Allowed {
			e.recorder.Record(hits[i].ID, Allowed)
		} else {
			e.recorder.Record(hits[i].ID, ShadowDenied)
		}
	}
	return Decision{Allowed: true, Hits: hits, Verdicts: verdicts}
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
