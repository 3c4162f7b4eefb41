// SPDX-License-Identifier: Apache-2.0

// Package file is a config store of policy files, for standalone use.
package file

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/go-logr/logr"

	"github.com/weir-dev/weir/internal/configstore"
)

const (
	// pollInterval is how often the files are read anyway: some file systems tell of no changes.
	pollInterval = time.Second
	// settle is how long files must have been quiet before they are read.
	settle = 50 * time.Millisecond
)

// Watcher is a [configstore.Watcher] of policy files, which follows their changes.
//
// Its snapshots are of no namespace, since files may hold policies of several; a policy that names none
// is of the namespace default. Of a folder it reads the files that end in .yaml, .yml or .json. A
// kustomization may lie among them, and is passed over.
//
// What is enforced changes only by what can be read and understood. A policy with a mistake keeps its
// last good version. A policy is dropped when it is missing for half a second from files that are
// otherwise in order, be it because its file was deleted or because the file now goes without it. A path
// that was named to [NewWatcher] and is missing, a file that can't be read, and one that holds nothing,
// not even a comment, are faults, and drop nothing.
type Watcher struct {
	paths []string
	shelf shelf
	// told are the faults that have been logged and still last.
	told []string
	log  logr.Logger
}

// NewWatcher reads policy files, and the files of folders, at these paths. All must be in order for a
// start: it gives an error that names each file and field that isn't.
func NewWatcher(paths []string, compile Compile, log logr.Logger) (*Watcher, error) {
	w := &Watcher{
		log: log,
		shelf: shelf{
			compile:  compile,
			policies: map[name]held{},
			revision: configstore.Revision{Epoch: time.Now().UnixMilli()},
		},
	}
	for _, p := range paths {
		if p = filepath.Clean(p); !slices.Contains(w.paths, p) {
			w.paths = append(w.paths, p)
		}
	}
	contents, unreadable := read(w.paths)
	if err := errors.Join(w.shelf.update(time.Now(), contents, unreadable)...); err != nil {
		return nil, err
	}
	w.shelf.revision.Number = 1 // No policies are a first snapshot too.
	return w, nil
}

// Watch implements [configstore.Watcher]. It must not be called while it runs.
func (w *Watcher) Watch(ctx context.Context, apply func(configstore.Snapshot)) error {
	changes, err := w.subscribe()
	if err != nil {
		w.log.Error(err, "polling policy files, which the system can't watch")
		changes = &fsnotify.Watcher{} // Its channels are nil, and never ready.
	} else {
		defer func() { _ = changes.Close() }()
	}
	apply(w.shelf.snapshot())

	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	quiet := time.NewTimer(0) // What has changed before the subscription is read at once.
	defer quiet.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-changes.Events:
			quiet.Reset(settle)
			continue
		case err := <-changes.Errors:
			w.log.Error(err, "changes of policy files may have been missed, looking at all")
		case <-quiet.C:
		case <-poll.C:
		}
		if w.look(time.Now()) {
			apply(w.shelf.snapshot())
		}
	}
}

// subscribe asks to be told of changes in the folders, and in those of the files: editors replace a file
// rather than write it, and a mounted ConfigMap replaces a link beside it.
func (w *Watcher) subscribe() (*fsnotify.Watcher, error) {
	changes, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, err
	}
	for _, p := range w.paths {
		if info, err := os.Stat(p); err != nil || !info.IsDir() {
			p = filepath.Dir(p)
		}
		if err := changes.Add(p); err != nil {
			return nil, errors.Join(err, changes.Close())
		}
	}
	return changes, nil
}

// look reads the files, logs what has gone wrong with them since the last look, and says whether there
// is a new snapshot.
func (w *Watcher) look(now time.Time) (changed bool) {
	before := w.shelf.revision
	contents, unreadable := read(w.paths)
	faults := w.shelf.update(now, contents, unreadable)
	var told []string
	for _, err := range faults {
		told = append(told, err.Error())
		if !slices.Contains(w.told, err.Error()) {
			w.log.Error(err, "keeping the last good policies")
		}
	}
	w.told = told
	return w.shelf.revision != before
}
