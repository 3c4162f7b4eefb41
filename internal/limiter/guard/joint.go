// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"context"
	"errors"
	"slices"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

// takeTogether takes what is leased first, for it can be given back at once.
func (l *Leases) takeTogether(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	if err := strategy.Check(hits); err != nil {
		return nil, err
	}
	j := &joint{hits: hits, verdicts: make([]limiter.Verdict, len(hits)), answers: make([]answer, len(hits))}
	for i := range hits {
		j.verdicts[i], j.answers[i] = l.decide(&hits[i])
	}
	var err error
	if !j.refused() {
		err = j.ask(ctx, l.store)
	}
	// What was charged may admit the request all the same, unless the error says that nothing was.
	if errors.Is(err, limiter.ErrInvalid) || errors.Is(err, limiter.ErrNotAsked) || err == nil && j.refused() {
		l.giveBack(j)
	}
	if err != nil {
		return nil, err
	}
	return j.verdicts, nil
}

// joint is a request of several hits.
type joint struct {
	hits     []limiter.Hit
	verdicts []limiter.Verdict
	answers  []answer
}

// refused says whether any hit refuses the request.
func (j *joint) refused() bool {
	for i := range j.hits {
		if j.answers[i] == refused && !j.hits[i].Shadow {
			return true
		}
	}
	return false
}

// ask asks a store for what isn't decided. Shadow hits can't fail a request.
func (j *joint) ask(ctx context.Context, store limiter.Store) error {
	var rest []limiter.Hit
	shadows := true
	for i := range j.hits {
		if j.answers[i] == unknown {
			rest, shadows = append(rest, j.hits[i]), shadows && j.hits[i].Shadow
		}
	}
	if len(rest) == 0 {
		return nil
	}
	verdicts, err := store.Take(ctx, rest)
	if err != nil {
		if !shadows {
			return err
		}
		verdicts = slices.Repeat([]limiter.Verdict{{Allowed: true}}, len(rest))
	}
	j.hear(verdicts)
	return nil
}

// hear fills in what a store has said to what wasn't decided.
func (j *joint) hear(verdicts []limiter.Verdict) {
	for i := range j.hits {
		if j.answers[i] != unknown {
			continue
		}
		j.verdicts[i], verdicts = verdicts[0], verdicts[1:]
		if !j.verdicts[i].Allowed {
			j.answers[i] = refused
		}
	}
}

// giveBack gives back what a request was charged that is refused.
func (l *Leases) giveBack(j *joint) {
	for i := range j.hits {
		h, v := &j.hits[i], &j.verdicts[i]
		if j.answers[i] == taken {
			l.shard(h.Key).giveBack(h, v.Receipt)
			v.Remaining += h.Cost
		}
		if h.Shadow {
			*v = limiter.Verdict{}
		}
	}
}

// giveBack gives an account what it was charged for a hit, or notes that it is owed.
func (s *accounts) giveBack(h *limiter.Hit, receipt int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if a := s.all[h.Key]; a != nil && a.hit.Limit == h.Limit {
		a.giveBack(receipt, h.Cost)
		return
	}
	s.owed = append(s.owed, limiter.Charge{Hit: *h, Receipt: receipt})
}
