// SPDX-License-Identifier: Apache-2.0

package redisclient

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// dialPause is how long a server that let nobody in is left alone, at least, and up to a quarter longer, so that
// many clients don't come back in step.
const dialPause = 200 * time.Millisecond

// Pace bounds how often clients that share it connect in vain: to each server five times a second at most, while the
// last that was heard of it is that it can't be reached or doesn't answer, and half as often while that is that it
// refuses their password. Who would connect sooner is told that again. The zero value is ready for use, and safe for
// concurrent use.
type Pace struct {
	mu       sync.Mutex
	troubles map[string]*trouble
}

// Paced has a client connect at a pace.
func Paced(p *Pace) Option { return func(u *use) { u.pace = p } }

// of gives what is known of a server.
func (p *Pace) of(address string) *trouble {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.troubles == nil {
		p.troubles = map[string]*trouble{}
	}
	if p.troubles[address] == nil {
		p.troubles[address] = new(trouble)
	}
	return p.troubles[address]
}

// trouble is a hook of the clients of one server.
type trouble struct {
	// last is why nobody could get in, or nil when that is over.
	last atomic.Pointer[error]

	mu sync.Mutex
	// next is when somebody may try again.
	next time.Time
}

// note keeps what was heard of the server.
func (t *trouble) note(err error) {
	reason := Reason(err)
	switch {
	case errors.As(err, new(tooSoonError)): // It was not heard of the server.
	case err == nil:
		if t.last.Load() != nil { // Loading alone keeps the usual case cheap.
			t.last.Store(nil)
		}
	case reason == Timeout, reason == Unreachable, LoggedOut(err):
		t.last.Store(&err)
	}
}

// wait says why it is too soon to connect, or nil.
func (t *trouble) wait(now time.Time) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	last, pause := t.last.Load(), dialPause
	if last != nil && now.Before(t.next) {
		return tooSoonError{*last}
	}
	if last != nil && LoggedOut(*last) {
		pause *= 2 // The library tries a password twice on each connection.
	}
	t.next = now.Add(pause + rand.N(pause/4)) //nolint:gosec // Nobody gains by guessing it.
	return nil
}

// tooSoonError is why a server is not dialed, with why the last who did was not let in.
type tooSoonError struct{ error }

func (e tooSoonError) Error() string { return "waiting to connect again: " + e.error.Error() }

// Unwrap gives what was heard of the server.
func (e tooSoonError) Unwrap() error { return e.error }

// DialHook is part of [redis.Hook].
func (t *trouble) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		if err := t.wait(time.Now()); err != nil {
			return nil, err
		}
		conn, err := next(ctx, network, address)
		if err != nil { // That it succeeded says nothing of who answers there.
			t.note(err)
		}
		return conn, err
	}
}

// ProcessHook is part of [redis.Hook].
func (t *trouble) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		t.note(err)
		return err
	}
}

// ProcessPipelineHook is part of [redis.Hook].
func (t *trouble) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		t.note(err)
		return err
	}
}
