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
	LocalAllowed Outcome = "local_allowed"
	LocalDenied  Outcome = "local_denied"
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
	// when no counter was asked or none could answer. Where this replica's own counters answered in the store's
	// stead, they are about those only. Where permits were refused after the turn in a queue, they
	// are about the permits only: all else was given back.
	Hits     []Hit
	Verdicts []Verdict
	// By is the hit that refused: the one that the client has to wait for the longest. Nil when Allowed or Left.
	By *Hit
	// RetryAfter is how long the client has to wait, or [Never]. Zero when Allowed, and when Err is set.
	RetryAfter time.Duration
	// Waited is how long the request was held for its turn in a queue. Zero when no queue had a slot for it.
	Waited time.Duration
	// Err is why the store couldn't answer; the hits' failure modes have then decided. It is nil where this
	// replica's own counters have refused instead: that is an answer.
	Err error

	permits *holding
}

// Engine decides requests. It is safe for concurrent use.
type Engine struct {
	store    Store
	recorder Recorder
	// fallback decides in the store's stead what can be decided without it. It is nil where nothing can.
	fallback *Engine
	// standsIn says that this engine is the fallback of another.
	standsIn bool
	// roster is nil where all keys have counters of their own.
	roster  Roster
	lines   lines
	permits permits
}

// NewEngine gives an engine that counts in store and tells recorder every outcome. Its [Engine.Run] has to run
// where limits of [Concurrency] are.
func NewEngine(store Store, recorder Recorder) *Engine {
	return &Engine{store: store, recorder: recorder, lines: newLines(), permits: newPermits()}
}

// NewEngineWithFallback is [NewEngine] for a replica that has counters of its own. While the store can't answer, own
// decides the hits that fail local, and those of limits that each replica counts by itself. Without it they are let
// through, like those that fail open.
func NewEngineWithFallback(store, own Store, recorder Recorder) *Engine {
	e := NewEngine(store, recorder)
	e.fallback = NewEngine(own, recorder)
	e.fallback.standsIn = true
	return e
}

// Roster knows the keys that have counters of their own.
type Roster interface {
	// Enlist says whether the key of a hit is one of them, now that it is asked for. It is called on the way of every
	// request: it has to be quick and safe for concurrent use.
	Enlist(h *Hit) bool
}

// Bound has the keys that r doesn't enlist count on the counter that their limit has for such, all together. It has to
// be called before the first decision; without it all keys have counters of their own.
func (e *Engine) Bound(r Roster) {
	e.roster = r
	if e.fallback != nil {
		e.fallback.roster = r // It renews permits too.
	}
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
	counted := e.seat(e.countable(hits))
	return e.count(ctx, counted)
}

// seat gives the hits with the counters that they count on.
func (e *Engine) seat(hits []Hit) []Hit {
	if e.roster == nil {
		return hits
	}
	var seated []Hit
	for i := range hits {
		if hits[i].Overflow == "" || e.roster.Enlist(&hits[i]) {
			continue
		}
		if seated == nil {
			seated = slices.Clone(hits) // The caller's stay as they are.
		}
		seated[i].Key = hits[i].Overflow
	}
	if seated == nil {
		return hits
	}
	return seated
}

// count decides a request by counters alone.
func (e *Engine) count(ctx context.Context, hits []Hit) Decision {
	if len(hits) == 0 {
		return Decision{Allowed: true}
	}
	if some(hits, (*Hit).outlasts) {
		return e.decideInTurn(ctx, hits)
	}
	verdicts, err := e.store.Take(context.WithoutCancel(ctx), hits)
	if err != nil {
		return e.fail(ctx, hits, err)
	}
	if d, refused := e.refuse(hits, verdicts); refused {
		return d
	}
	return e.admit(hits, verdicts)
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
		e.recorder.Record(hits[i].ID, e.denied(&hits[i]))
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
			e.recorder.Record(hits[i].ID, e.allowed(&hits[i]))
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

// allowed and denied give the outcomes of a hit that a counter has decided. A limit that each replica counts by
// itself never needs the store, and so nothing stands in for it.
func (e *Engine) allowed(h *Hit) Outcome {
	if e.standsIn && h.Distribution != PerReplica {
		return LocalAllowed
	}
	return Allowed
}

func (e *Engine) denied(h *Hit) Outcome {
	if e.standsIn && h.Distribution != PerReplica {
		return LocalDenied
	}
	return Denied
}

// fail decides without the store: one closed limit refuses, else the replica's own counters decide, else all admit.
func (e *Engine) fail(ctx context.Context, hits []Hit, err error) Decision {
	for i := range hits {
		if hits[i].failsClosed() {
			e.recorder.Record(hits[i].ID, FailedClosed)
			return Decision{By: &hits[i], Err: err}
		}
	}
	own, others := e.divide(hits)
	d := Decision{Allowed: true}
	if len(own) > 0 {
		d = e.fallback.count(ctx, own)
	}
	if !d.Allowed {
		return d
	}
	for i := range others {
		e.recorder.Record(others[i].ID, FailedOpen)
	}
	d.Err = err
	return d
}

// divide tells the hits that can be decided without the store from those that can't.
func (e *Engine) divide(hits []Hit) (own, others []Hit) {
	if e.fallback == nil {
		return nil, hits
	}
	for _, h := range hits {
		if h.OnFailure == FailLocal || h.Distribution == PerReplica {
			own = append(own, h)
		} else {
			others = append(others, h)
		}
	}
	return own, others
}

// failsClosed says whether the hit refuses its request while the store can't answer.
func (h *Hit) failsClosed() bool {
	return h.OnFailure == FailClosed && h.Distribution != PerReplica && !h.Shadow
}

// longer compares two waits, [Never] being the longest.
func longer(a, b time.Duration) bool {
	if a == Never || b == Never {
		return a == Never && b != Never
	}
	return a > b
}
