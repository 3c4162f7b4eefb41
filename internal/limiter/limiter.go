// SPDX-License-Identifier: Apache-2.0

// Package limiter decides whether a request is within its limits.
//
// A request hits some limits. A [Store] counts the hits, all or none of them, and an [Engine] turns what
// the store says, or that it can't say anything, into one [Decision]. The package knows nothing of HTTP,
// Kubernetes or Redis.
package limiter

import (
	"context"
	"errors"
	"time"
)

// Algorithm names a strategy of counting. The strategies themselves are in package strategy.
type Algorithm string

// The algorithms, by the names that the API, the snapshots and the scripts use.
const (
	TokenBucket              Algorithm = "TokenBucket"
	FixedWindow              Algorithm = "FixedWindow"
	CalendarWindow           Algorithm = "CalendarWindow"
	SlidingWindowRing        Algorithm = "SlidingWindowRing"
	SlidingWindowLog         Algorithm = "SlidingWindowLog"
	SlidingWindowApproximate Algorithm = "SlidingWindowApproximate"
	LeakyBucketMeter         Algorithm = "LeakyBucketMeter"
	LeakyBucketQueue         Algorithm = "LeakyBucketQueue"
	Concurrency              Algorithm = "Concurrency"
)

// Limit says how much is allowed.
type Limit struct {
	Algorithm Algorithm `json:"algorithm"`
	// Requests per window: 100 with a window of a minute is 100 a minute. Of Concurrency it is how many may be
	// under way at a time.
	Requests int64 `json:"requests"`
	// Window is a whole number of microseconds, from 10 ms to 8784 h. In JSON it is nanoseconds.
	// CalendarWindow has none. Of Concurrency it is how long a permit lasts that nobody renews, at least: up to a
	// 64th longer.
	Window time.Duration `json:"window,omitempty"`
	// Calendar has the windows of CalendarWindow; other algorithms ignore it.
	Calendar Calendar `json:"calendar,omitzero"`
	// Burst is the capacity of a token bucket; other algorithms ignore it.
	Burst int64 `json:"burst,omitempty"`
	// MaxDelay is the longest that LeakyBucketQueue has a request wait, a whole number of microseconds up to 8784 h,
	// and MaxQueue how many can wait at a time, a cost of 3 counting as 3: 0 for any number. With a MaxDelay of 0
	// nobody waits. Other algorithms ignore both.
	MaxDelay time.Duration `json:"maxDelay,omitempty"`
	MaxQueue int64         `json:"maxQueue,omitempty"`
	// Lease is for how long ahead an enforcer may take from a counter, to decide in process: 0 for not at all. To a
	// store it makes no difference.
	Lease time.Duration `json:"lease,omitempty"`
}

// Capacity is the most that a single request can ever cost: the burst of a token bucket, the requests of
// all others.
func (l Limit) Capacity() int64 {
	if l.Algorithm == TokenBucket {
		return l.Burst
	}
	return l.Requests
}

// Hit is one request counted against one limit.
type Hit struct {
	// Key names the counter. Hits with different keys never share a count, and one request never hits
	// the same key twice.
	Key string
	// Overflow names the counter of the keys that have none of their own: see [Engine.Bound]. It is the same for all keys
	// of a limit and target, and empty where there are no others.
	Overflow string
	// Limit holds the parameters to evaluate the counter with.
	Limit Limit
	// Cost is what the request takes. 0 takes nothing and always fits: it peeks. Above the capacity it
	// never fits. Negative is an error.
	Cost int64
	// UpTo takes as much of Cost as fits, and is allowed if that is anything; where Cost is above 255, it takes a part
	// in 255 or so less than fits. It goes with what can be leased, and has to be the only hit of its request.
	UpTo bool
	// Shadow hits never refuse. They are evaluated, each by itself, only after all others admit; when one
	// of those refuses, the verdicts of the shadow hits are zero.
	Shadow bool
	// Deny says that the request is to be refused whatever the counter says, because it lacks what its
	// key is made of. Such a hit has no Key, and no store is asked about its request.
	Deny bool
	// OnFailure is what a store that can't answer means for this hit.
	OnFailure FailureMode
	// Distribution says where the hit is counted.
	Distribution Distribution
	// Target is which of the limit's targets the hit is for. The counters of one limit and target are shared by the
	// same replicas.
	Target string
	// ID is what the hit is reported under.
	ID LimitID
}

// LimitID names a limit to people. It is comparable.
type LimitID struct {
	Namespace, Policy, Limit string
}

// FailureMode says what a store that can't answer means for a hit.
type FailureMode string

// The failure modes. The zero value is Open.
const (
	FailOpen   FailureMode = "Open"
	FailClosed FailureMode = "Closed"
	FailLocal  FailureMode = "Local"
)

// Distribution says how replicas share what a limit admits.
type Distribution string

// The distributions. Exact is one count for all replicas, in the store; with PerReplica each replica counts by itself,
// and has the whole limit.
const (
	Exact      Distribution = ""
	PerReplica Distribution = "PerReplica"
)

// Verdict is what one counter says of one hit. The zero value says nothing: of a hit that its counter was not
// asked about, because another hit refuses the request anyway.
type Verdict struct {
	// Allowed says whether the cost fits. A hit can be allowed and still not charged: when another hit
	// of the same request is not.
	Allowed bool
	// Remaining is what is left after this request, rounded down: with 10 a second and 6 taken it is 4.
	Remaining int64
	// RetryAfter is how long to wait until the same request fits, if nobody else takes anything
	// meanwhile. Zero when allowed, and only then; [Never] when the cost is above the capacity. Of Concurrency it
	// promises nothing: permits come back at any time.
	RetryAfter time.Duration
	// ResetAfter is how long Remaining has to last: the end of a fixed window, the time in which a bucket or a queue
	// gains as much again (one token, when nothing is left), the time until a sliding window has more. Of Concurrency
	// it is when to ask again.
	ResetAfter time.Duration
	// Wait is how long the request has to be held before it may go on, from when the verdict is there: until its
	// slot in a queue. Zero for all other algorithms, for a shadow hit, which holds nobody, and where nothing was
	// charged.
	Wait time.Duration
	// Taken is what a hit took that is UpTo: with 10 a second and 6 taken, 4 of a cost of 8. Zero of all others.
	Taken int64
	// Lasts is how long that counts as if it were taken later: until the window or its slot ends. Zero where none does.
	Lasts time.Duration
	// Receipt is what [Store.Refund] and [Store.Renew] need to know of the charge. Of LeakyBucketQueue it grows with
	// the slot: of two requests that one counter has slots for, the one with the smaller receipt goes first.
	Receipt int64
}

// Charge is a hit that was charged, and the receipt for it.
type Charge struct {
	Hit     Hit
	Receipt int64
}

// Never is the RetryAfter of a request that will not fit however long it waits.
const Never time.Duration = -1

// Store counts hits.
type Store interface {
	// Take decides the hits of one request together, in one atomic step: either all that are not Shadow
	// are allowed and all are charged, or none is charged. A store whose counters are spread over several
	// servers may charge some for a moment, until another refuses; it never admits more for that. It gives
	// one verdict for each hit, in order. Beside one that refuses, others can be zero.
	//
	// An error means that nothing is known of any of them: it never means denied, and the request may
	// or may not have been charged. Only [ErrInvalid] and [ErrNotAsked] say that nothing was charged.
	//
	// Take returns as soon as ctx is done, whatever it waits for. What it has begun may go on, so after an
	// error the hits must not be changed. Take is safe for concurrent use.
	Take(ctx context.Context, hits []Hit) ([]Verdict, error)
	// Refund gives back charges, because what was admitted didn't take place, or is over: a slot in a queue that
	// nobody waits for any more, a permit that isn't used any more. Several charges can have one key. It never gives
	// more than was taken, and nothing that would let more through than if it had not been taken: what doesn't count
	// any more stays as it is. A charge must not be refunded twice.
	//
	// After an error a charge may or may not be refunded; it counts until it expires, and no longer. Refund returns
	// as soon as ctx is done, and is safe for concurrent use.
	Refund(ctx context.Context, charges []Charge) error
	// Renew makes permits of Concurrency last for another window from now. Several charges can have one key. A
	// permit that has expired, or was refunded, stays so. After an error a permit may or may not be renewed. Renew
	// returns as soon as ctx is done, and is safe for concurrent use.
	Renew(ctx context.Context, charges []Charge) error
}

// ErrInvalid is wrapped by the error for a request that no store can decide: an unknown algorithm, a
// parameter out of range, a negative cost, one key twice.
var ErrInvalid = errors.New("invalid hit")

// ErrNotAsked is wrapped by the error for a request that was kept from a store which has not answered
// others lately.
var ErrNotAsked = errors.New("store not asked")
