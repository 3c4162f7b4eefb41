// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
)

// notice is what came of one policy the last time that its namespace was looked at.
type notice struct {
	// uid and generation are of the object that was looked at.
	uid        types.UID
	generation int64
	// refusal is why it was not accepted; nil when it was.
	refusal error
	// published is what the store is known to hold of it; nil is nothing.
	published *configstore.Policy
	// epoch is that of the snapshot that the store is known to hold.
	epoch int64
	// summary of the limits that are to be enforced; empty when none are.
	summary string
	// err is why the store could not be brought up to date with this policy.
	err error
}

// view is all that there is to tell of one policy.
type view struct {
	notice
	observed
	// bare are the pods of its namespace that lack a sidecar.
	bare []bare
	// storeErr is why the manager can't reach the config store.
	storeErr error
	// reportsErr is why the manager can't read what enforcers report. What was observed is old then.
	reportsErr error
	// evicting are the stores that throw away what they hold when they are full. Empty is none.
	evicting string
}

// Board is where the parts of this package leave notes for the one that writes status, which it wakes. It
// holds nothing that can't be observed again: a new leader starts with an empty one. It is safe for
// concurrent use.
type Board struct {
	// changed wakes the writer of status for each policy of which there is something new to tell.
	changed trigger

	mu         sync.Mutex
	notices    map[string]map[string]notice // by namespace and name of the policy
	seen       map[string]observed          // by namespace
	bare       map[string][]bare            // by namespace
	storeErr   error
	reportsErr error
	evicting   string
}

// NewBoard gives an empty board.
func NewBoard() *Board {
	return &Board{notices: map[string]map[string]notice{}}
}

// view gives what there is to tell of a policy as it is now. There is nothing until its present generation
// has been judged, and the reports of its namespace have been read, or found to be out of reach.
func (b *Board) view(p *v1alpha1.RateLimitPolicy) (view, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n, judged := b.notices[p.Namespace][p.Name]
	seen, read := b.seen[p.Namespace]
	v := view{notice: n, observed: seen, bare: b.bare[p.Namespace], storeErr: b.storeErr, reportsErr: b.reportsErr, evicting: b.evicting}
	return v, judged && n.uid == p.UID && n.generation == p.Generation && (read || b.reportsErr != nil)
}

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

// observe replaces what the enforcers report, by namespace. It has an entry for each that was read.
func (b *Board) observe(seen map[string]observed) {
	b.mu.Lock()
	old := b.seen
	b.seen = seen
	b.mu.Unlock()
	b.wake(func(namespace string) bool {
		was, known := old[namespace]
		return !known || was.digest != seen[namespace].digest
	})
}

// lack replaces the pods that lack a sidecar, by namespace.
func (b *Board) lack(bare map[string][]bare) {
	b.mu.Lock()
	old := b.bare
	b.bare = bare
	b.mu.Unlock()
	b.wake(func(namespace string) bool { return digest(old[namespace]) != digest(bare[namespace]) })
}

// storeAway says why the config store can't be reached, or nil when it can.
func (b *Board) storeAway(err error) {
	b.mu.Lock()
	b.storeErr = err
	b.mu.Unlock()
	b.wake(everywhere)
}

// reportsAway says why the enforcers' reports can't be read, or nil when they can.
func (b *Board) reportsAway(err error) {
	b.mu.Lock()
	b.reportsErr = err
	b.mu.Unlock()
	b.wake(everywhere)
}

// storeEvicts names the stores that throw away what they hold when they are full, and nothing when none does.
func (b *Board) storeEvicts(evicting string) {
	b.mu.Lock()
	same := b.evicting == evicting
	b.evicting = evicting
	b.mu.Unlock()
	if !same {
		b.wake(everywhere)
	}
}

func everywhere(string) bool { return true }

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

// tellsTheSameAs says whether two notices make the same status.
func (n notice) tellsTheSameAs(o notice) bool {
	return n.uid == o.uid &&
		n.generation == o.generation &&
		text(n.refusal) == text(o.refusal) &&
		since(n.published) == since(o.published) &&
		n.epoch == o.epoch &&
		n.summary == o.summary &&
		text(n.err) == text(o.err)
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
