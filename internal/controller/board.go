// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
)

// notice is what came of one policy the last time that its namespace was looked at.
type notice struct {
	// generation of the object that was looked at.
	generation int64
	// refusal is why it was not accepted; nil when it was.
	refusal error
	// published is what the store is known to hold of it; nil is nothing.
	published *configstore.Policy
	// summary of the limits that are to be enforced; empty when none are.
	summary string
	// err is why the store could not be brought up to date.
	err error
}

// Board is where the parts of this package leave notes for the one that writes status, which it wakes. It
// holds nothing that can't be observed again: a new leader starts with an empty one. It is safe for
// concurrent use.
type Board struct {
	// changed wakes the writer of status for each policy of which there is something new to tell.
	changed trigger

	mu      sync.Mutex
	notices map[string]map[string]notice // by namespace and name of the policy
	seen    map[string]observed          // by namespace
	digests map[string]string            // of what was seen
	readErr error
}

// NewBoard gives an empty board.
func NewBoard() *Board {
	return &Board{notices: map[string]map[string]notice{}, readErr: errNotRead}
}

// errNotRead stands until the enforcers' reports have been read for the first time.
var errNotRead = errors.New("the enforcers' reports have not been read yet")

// post replaces the notices of a namespace.
func (b *Board) post(namespace string, notices map[string]notice) {
	b.mu.Lock()
	old := b.notices[namespace]
	if len(notices) > 0 {
		b.notices[namespace] = notices
	} else {
		delete(b.notices, namespace)
	}
	b.mu.Unlock()
	for name, n := range notices {
		if was, ok := old[name]; !ok || !was.tellsTheSameAs(n) {
			b.changed.enqueue(types.NamespacedName{Namespace: namespace, Name: name})
		}
	}
}

// notice gives what there is to tell of a policy as it is now. There is none until its present generation
// has been looked at.
func (b *Board) notice(p *v1alpha1.RateLimitPolicy) (notice, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, ok := b.notices[p.Namespace][p.Name]
	return n, ok && n.generation == p.Generation
}

// observe replaces what the enforcers report, by namespace.
func (b *Board) observe(seen map[string]observed) {
	digests := make(map[string]string, len(seen))
	for namespace, o := range seen {
		digests[namespace] = o.digest()
	}
	b.mu.Lock()
	blind, old := b.readErr != nil, b.digests
	b.seen, b.digests, b.readErr = seen, digests, nil
	b.mu.Unlock()
	b.wake(func(namespace string) bool { return blind || digests[namespace] != old[namespace] })
}

// cannotObserve says why nothing is known of the enforcers at present.
func (b *Board) cannotObserve(err error) {
	b.mu.Lock()
	blind := b.readErr != nil
	b.readErr = err
	b.mu.Unlock()
	b.wake(func(string) bool { return !blind })
}

// wake wakes the writer of status for all policies of some namespaces.
func (b *Board) wake(in func(namespace string) bool) {
	var names []types.NamespacedName
	b.mu.Lock()
	for namespace, notices := range b.notices {
		if !in(namespace) {
			continue
		}
		for name := range notices {
			names = append(names, types.NamespacedName{Namespace: namespace, Name: name})
		}
	}
	b.mu.Unlock()
	for _, name := range names {
		b.changed.enqueue(name)
	}
}

// observedIn gives what the enforcers of a namespace report, or why that isn't known.
func (b *Board) observedIn(namespace string) (observed, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.seen[namespace], b.readErr
}

// tellsTheSameAs says whether two notices make the same status.
func (n notice) tellsTheSameAs(o notice) bool {
	return n.generation == o.generation &&
		text(n.refusal) == text(o.refusal) &&
		n.summary == o.summary &&
		(n.err == nil) == (o.err == nil) &&
		since(n.published) == since(o.published)
}

func since(p *configstore.Policy) configstore.Revision {
	if p == nil {
		return configstore.Revision{}
	}
	return p.Since
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
