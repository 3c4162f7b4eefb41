// SPDX-License-Identifier: Apache-2.0

// Package configstore carries a snapshot of limits from the manager to the sidecars.
//
// One writer, the manager's leader, publishes a snapshot for each namespace; any number of watchers
// follow it. Snapshots are ordered by their [Revision], and order survives anything: a watcher never goes
// back, and a deposed leader can't write. What is missing says nothing: no backend ever turns absent data
// into "no policies".
package configstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/weir-dev/weir/internal/match"
)

// Revision orders the snapshots of a namespace. The zero value comes before all others.
type Revision struct {
	// Epoch grows with each leader.
	Epoch int64 `json:"epoch"`
	// Number grows with each change.
	Number int64 `json:"number"`
}

// Compare is negative when r comes before o, 0 when they are the same, else positive.
func (r Revision) Compare(o Revision) int {
	if r.Epoch != o.Epoch {
		if r.Epoch < o.Epoch {
			return -1
		}
		return 1
	}
	switch {
	case r.Number < o.Number:
		return -1
	case r.Number > o.Number:
		return 1
	}
	return 0
}

// String is epoch/number.
func (r Revision) String() string { return fmt.Sprintf("%d/%d", r.Epoch, r.Number) }

// Snapshot is all that the enforcers of a namespace have to know. It is never changed once made.
type Snapshot struct {
	// Namespace of all policies. Empty in a snapshot of files, whose policies may be of several.
	Namespace string   `json:"namespace"`
	Revision  Revision `json:"revision"`
	// Policies in order of their names. Empty means that there are none, and is published as such.
	Policies []Policy `json:"policies"`
}

// Policy is one policy, of which object, and since when.
type Policy struct {
	match.Policy
	// UID of the object: a policy that is deleted and created again is another one.
	UID string `json:"uid,omitempty"`
	// Since is the first revision that carries the policy as it is here.
	Since Revision `json:"since"`
}

// Publisher writes snapshots. It is for one leader at a time.
type Publisher interface {
	// Claim makes this publisher the leader from now on: it gives an epoch above every earlier one, the
	// publisher remembers it, and publishers with an earlier one, or none, are fenced.
	Claim(ctx context.Context) (epoch int64, err error)
	// Publish stores a snapshot, if its revision comes after the stored one's, and then announces it.
	// Publishing what is stored already, revision and all, does nothing and is no error.
	// The revision may be of an earlier epoch than the one claimed, never of a later one: a leader
	// restores what a flush has taken by publishing it as it was.
	// A snapshot without policies is kept for a day: who wants it longer has to restore it.
	// It fails with [ErrFenced] for a deposed leader, with [ErrStale] when the stored revision is the
	// same or later, and with [ErrTooLarge].
	Publish(ctx context.Context, s Snapshot) error
	// Load gives the stored snapshots of these namespaces. One that isn't stored, or can't be understood,
	// is absent from the map.
	Load(ctx context.Context, namespaces ...string) (map[string]Snapshot, error)
	// Revisions gives the stored revisions of these namespaces, cheaply. One that isn't stored is absent.
	Revisions(ctx context.Context, namespaces ...string) (map[string]Revision, error)
}

// Watcher follows the snapshots of one namespace.
type Watcher interface {
	// Watch calls apply with the stored snapshot, and with every later one that it sees, until ctx is
	// done, and then returns nil; revisions only ever grow. It waits out a store that is away, empty or holds garbage, and
	// says so to its logger; it returns an error only for what waiting can't cure. The calls of apply
	// don't overlap. A snapshot arrives in well under a second, and within two when an announcement was
	// lost.
	Watch(ctx context.Context, apply func(Snapshot)) error
}

// MaxBytes is the most that a snapshot can have as JSON: 1 MiB.
const MaxBytes = 1 << 20

// Errors of a [Publisher].
var (
	// ErrFenced says that another leader has claimed the store since.
	ErrFenced = errors.New("a later leader has claimed the config store")
	// ErrStale says that the stored snapshot is as new as this one, or newer.
	ErrStale = errors.New("the config store holds this revision or a later one")
	// ErrTooLarge says that a snapshot has more than [MaxBytes].
	ErrTooLarge = errors.New("the snapshot is larger than 1 MiB")
)
