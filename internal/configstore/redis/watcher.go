// SPDX-License-Identifier: Apache-2.0

package redis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/go-logr/logr"
	goredis "github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/configstore"
)

const (
	// pollInterval is what a lost announcement costs at most.
	pollInterval = time.Second
	// lookTimeout bounds one look at the store.
	lookTimeout = 2 * time.Second
	// silence after which a subscription has to prove that it is alive.
	silence = 5 * time.Second
	// minBackoff and maxBackoff are the first and the longest wait between two tries to subscribe.
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// errAway says that the store couldn't be asked.
var errAway = errors.New("the config store does not answer")

// Watcher is a [configstore.Watcher]. It needs to read one key and to subscribe to one channel, both of
// one name; it writes nothing.
type Watcher struct {
	client    goredis.UniversalClient
	namespace string
	key       string
	log       logr.Logger
}

// NewWatcher gives a watcher of one namespace of the installation called instance.
func NewWatcher(client goredis.UniversalClient, instance, namespace string, log logr.Logger) *Watcher {
	return &Watcher{client: client, namespace: namespace, key: snapshotKey(instance, namespace), log: log}
}

// Watch implements [configstore.Watcher].
func (w *Watcher) Watch(ctx context.Context, apply func(configstore.Snapshot)) error {
	announced := make(chan struct{}, 1)
	var listener sync.WaitGroup
	listener.Go(func() { w.listen(ctx, announced) })
	defer listener.Wait()

	f := follower{Watcher: w, apply: apply}
	for {
		f.look(ctx)
		select {
		case <-ctx.Done():
			return nil
		case <-announced:
		case <-time.After(jitter(pollInterval)):
		}
	}
}

// follower is one run of [Watcher.Watch].
type follower struct {
	*Watcher
	apply   func(configstore.Snapshot)
	applied configstore.Revision
	// trouble is what was last complained of.
	trouble string
}

// look applies the stored snapshot if it is newer than the applied one.
func (f *follower) look(ctx context.Context) {
	bounded, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	s, err := f.newer(bounded)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		f.complain(err)
	default:
		f.trouble = ""
		if s != nil {
			f.applied = s.Revision
			f.apply(*s)
		}
	}
}

// newer gives the stored snapshot, or nil when it is the applied one.
func (f *follower) newer(ctx context.Context) (*configstore.Snapshot, error) {
	stored, size, err := f.head(ctx)
	if err != nil {
		return nil, err
	}
	switch order := stored.Compare(f.applied); {
	case order < 0:
		return nil, fmt.Errorf("snapshot %s is older than the one enforced, %s", stored, f.applied)
	case order == 0:
		return nil, nil
	case size > configstore.MaxBytes:
		return nil, fmt.Errorf("snapshot %s: %w: it has %d bytes", stored, configstore.ErrTooLarge, size)
	}
	fields, err := f.client.HMGet(ctx, f.key, fieldEpoch, fieldNumber, fieldBody).Result()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errAway, err)
	}
	s, err := snapshot(f.namespace, fields)
	if err != nil {
		return nil, err
	}
	if s.Revision.Compare(f.applied) <= 0 {
		return nil, nil // It was replaced since the head was read. The next look tells.
	}
	return &s, nil
}

// head gives the stored revision, and how many bytes its body has. It is cheap, whatever is stored.
func (f *follower) head(ctx context.Context) (configstore.Revision, int64, error) {
	var fields *goredis.SliceCmd
	var size *goredis.IntCmd
	_, err := f.client.Pipelined(ctx, func(pipe goredis.Pipeliner) error {
		fields = pipe.HMGet(ctx, f.key, fieldEpoch, fieldNumber)
		size = pipe.HStrLen(ctx, f.key, fieldBody)
		return nil
	})
	if err != nil {
		return configstore.Revision{}, 0, fmt.Errorf("%w: %w", errAway, err)
	}
	stored, err := revision(fields.Val())
	return stored, size.Val(), err
}

// complain logs what keeps the follower from newer snapshots, once. Trouble with the connection is all
// the same trouble, whatever its words and ports.
func (f *follower) complain(err error) {
	trouble := err.Error()
	if errors.Is(err, errAway) {
		trouble = errAway.Error()
	}
	if trouble == f.trouble {
		return
	}
	f.trouble = trouble
	switch {
	case f.applied != (configstore.Revision{}):
		f.log.Error(err, "keeping the last snapshot", "namespace", f.namespace, "revision", f.applied.String())
	case errors.Is(err, errAbsent): // So it is wherever nothing was published yet.
		f.log.Info("waiting for a first snapshot", "namespace", f.namespace)
	default:
		f.log.Error(err, "waiting for a first snapshot", "namespace", f.namespace)
	}
}

// listen tells of announcements, and of each new subscription, since one may have come before it. It
// subscribes again, with patience, until ctx is done.
func (w *Watcher) listen(ctx context.Context, announced chan<- struct{}) {
	backoff := minBackoff
	for ctx.Err() == nil {
		if w.receive(ctx, announced) {
			backoff = minBackoff
		}
		select {
		case <-ctx.Done():
		case <-time.After(jitter(backoff)):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// receive passes on what comes in by one subscription, until it fails. It says whether it ever worked.
func (w *Watcher) receive(ctx context.Context, announced chan<- struct{}) (worked bool) {
	subscription := w.client.Subscribe(ctx, w.key)
	defer func() { _ = subscription.Close() }()
	// Reading doesn't end with ctx, only with the connection.
	stop := context.AfterFunc(ctx, func() { _ = subscription.Close() })
	defer stop()

	asked := false
	for {
		message, err := subscription.ReceiveTimeout(ctx, silence)
		var late net.Error
		switch {
		case err != nil && !asked && errors.As(err, &late) && late.Timeout():
			asked = subscription.Ping(ctx) == nil
		case err != nil:
			return worked
		default:
			worked, asked = true, false
			if _, alive := message.(*goredis.Pong); !alive {
				signal(announced)
			}
		}
	}
}

// signal leaves a signal unless there is one already.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// jitter is d, give or take a tenth: sidecars that lost the store together don't come back in step.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5) //nolint:gosec // Nobody gains by guessing it.
}
