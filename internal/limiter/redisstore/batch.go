// SPDX-License-Identifier: Apache-2.0

package redisstore

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/strategy"
)

const (
	// maxRequests and maxHits bound a batch, so that it keeps Redis from others for a millisecond or so.
	maxRequests = 128
	maxHits     = 512
	// maxFlights is how many batches are under way at most. It is also the most calls that can hang.
	maxFlights = 4
	// crowd is how many callers wait for an answer when it is better to collect than to depart: a few are
	// quicker each by itself, many are cheaper together.
	crowd = 8
	// patience is how long a shuttle waits for its next flight. A new one takes longer to start than to fly, since it
	// has to find out how much stack it needs.
	patience = 100 * time.Millisecond
)

// batcher lets requests that come at once ride together. A batch departs as soon as there is a flight for
// it, and is what has collected until then: nobody waits for a timer, and the busier it is, the larger the
// batches are.
type batcher struct {
	// fly decides the requests of a batch, in order, and puts an answer to each beside it. It may take its time.
	fly func(requests []strategy.Request, answers []answer)
	// boarding takes riders to a shuttle that waits for some.
	boarding chan []*rider
	// riders are those whose rides are over, to be used again.
	riders sync.Pool

	mu sync.Mutex
	// queue holds the riders of the flights to come, first come first, and waiting is how many of them have not gone.
	queue   []*rider
	waiting int
	flights int
	// riding is how many callers wait for a flight that is under way.
	riding int
}

func newBatcher(fly func(requests []strategy.Request, answers []answer)) *batcher {
	return &batcher{
		fly:      fly,
		boarding: make(chan []*rider),
		riders:   sync.Pool{New: func() any { return &rider{landed: make(chan struct{}, 1)} }},
	}
}

// answer is what a flight brings a rider.
type answer struct {
	verdicts []limiter.Verdict
	err      error
}

// rider is one request. The batcher's mutex guards what changes.
type rider struct {
	ctx     context.Context
	request strategy.Request
	stage   stage
	// answer is there when landed says so.
	answer answer
	landed chan struct{}
}

// stage is how far a rider has got.
type stage int

const (
	waiting stage = iota
	riding
	arrived
	gone
)

// ride has the next flight decide a request. Whose context ends gets an error at once. If the request was
// under way by then it goes on, and may be charged; if it was not, it never will be.
func (b *batcher) ride(ctx context.Context, request strategy.Request) ([]limiter.Verdict, error) {
	r := b.riders.Get().(*rider)
	r.ctx, r.request, r.stage, r.answer = ctx, request, waiting, answer{}
	b.wait(r)
	select {
	case <-r.landed:
	case <-ctx.Done():
		if b.leave(r) {
			// A flight may still bring it an answer: it can't be used again.
			return nil, fmt.Errorf("waiting for Redis: %w", ctx.Err())
		}
		<-r.landed
	}
	verdicts, err := r.answer.verdicts, r.answer.err
	r.ctx, r.request, r.answer = nil, strategy.Request{}, answer{}
	b.riders.Put(r)
	return verdicts, err
}

func (b *batcher) wait(r *rider) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.queue = append(b.queue, r)
	b.waiting++
	b.depart()
}

// leave takes out a rider whose caller has given up. It is false when the answer is there after all.
func (b *batcher) leave(r *rider) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch r.stage {
	case arrived:
		return false
	case waiting:
		b.waiting--
		defer b.forget()
	case riding:
		// A flight that nobody waits for any more doesn't hold up the next.
		b.riding--
		defer b.depart()
	case gone:
		// It was left behind because its context was done.
	}
	r.stage = gone
	return true
}

// forget drops those who have gone, if they are more than the others. The caller holds the mutex.
func (b *batcher) forget() {
	if len(b.queue) > 2*b.waiting {
		b.queue = slices.DeleteFunc(b.queue, func(r *rider) bool { return r.stage == gone })
	}
}

// depart sends off those who wait, if it is time to. The caller holds the mutex.
func (b *batcher) depart() {
	for riders := b.board(); len(riders) > 0; riders = b.board() {
		// Not on the goroutine of a caller: a call that hangs could not be left.
		select {
		case b.boarding <- riders:
		default:
			go b.shuttle(riders)
		}
	}
}

// board takes a batch from those who wait, if it is time to. The caller holds the mutex.
func (b *batcher) board() []*rider {
	if b.waiting == 0 || b.flights > 0 && (b.flights == maxFlights || b.waiting < b.enough()) {
		return nil
	}
	riders := make([]*rider, 0, min(b.waiting, maxRequests))
	left, hits := 0, 0
	for ; left < len(b.queue) && len(riders) < maxRequests && hits < maxHits; left++ {
		r := b.queue[left]
		if r.stage == gone {
			continue
		}
		b.waiting--
		if r.ctx.Err() != nil {
			r.stage = gone
			continue
		}
		r.stage = riding
		riders = append(riders, r)
		hits += len(r.request.Hits)
	}
	b.queue = slices.Delete(b.queue, 0, left)
	if len(riders) > 0 {
		b.flights++
		b.riding += len(riders)
	}
	return riders
}

// enough is how many have to wait for another flight to depart beside those under way. Three quarters of those who ride
// make two flights of about a half of all, of which Redis has one while the callers of the other ask again: so neither
// side waits for the other. The caller holds the mutex.
func (b *batcher) enough() int {
	if b.riding < crowd {
		return 1
	}
	return min(maxRequests, b.riding*3/4)
}

// shuttle flies one batch after the other for as long as somebody waits, and is ready for the next for a while.
func (b *batcher) shuttle(riders []*rider) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	var requests []strategy.Request
	var answers []answer
	for {
		for len(riders) > 0 {
			for _, r := range riders {
				requests, answers = append(requests, r.request), append(answers, answer{})
			}
			b.fly(requests, answers)
			riders = b.land(riders, answers)
			clear(requests)
			clear(answers)
			requests, answers = requests[:0], answers[:0]
		}
		timer.Reset(patience)
		select {
		case riders = <-b.boarding:
		case <-timer.C:
			return
		}
	}
}

// land gives all riders their answers, and boards the next. The flight counts until those who have landed had their
// turn to run: they ask again at once, and a flight that left without them would be all but empty.
func (b *batcher) land(riders []*rider, answers []answer) []*rider {
	landed := b.arrive(riders, answers)
	for _, r := range riders {
		r.landed <- struct{}{}
	}
	runtime.Gosched()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.riding -= landed
	b.flights--
	next := b.board()
	b.depart()
	return next
}

// arrive has the answers at hand for their riders, and says how many of them wait for theirs.
func (b *batcher) arrive(riders []*rider, answers []answer) (landed int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, r := range riders {
		r.answer = answers[i]
		if r.stage == riding {
			r.stage = arrived
			landed++
		}
	}
	return landed
}
