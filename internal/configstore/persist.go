// SPDX-License-Identifier: Apache-2.0

package configstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/go-logr/logr"
)

// Persist gives a watcher that keeps the last snapshot of another one in the file at path, so that a
// restart enforces it again at once, whether or not the store is there. A newer snapshot is applied
// before it is written: a disk that is full costs a log line and no snapshot. So does a file that can't
// be read.
func Persist(inner Watcher, path string, log logr.Logger) Watcher {
	return &persistent{inner: inner, path: path, log: log}
}

type persistent struct {
	inner Watcher
	path  string
	log   logr.Logger
}

// Watch implements [Watcher].
func (p *persistent) Watch(ctx context.Context, apply func(Snapshot)) error {
	var applied Revision
	switch s, err := load(p.path); {
	case err == nil:
		applied = s.Revision
		apply(s)
	case !errors.Is(err, fs.ErrNotExist):
		p.log.Error(err, "ignoring the snapshot on disk")
	}
	return p.inner.Watch(ctx, func(s Snapshot) {
		switch order := s.Revision.Compare(applied); {
		case order < 0:
			p.log.Info("ignoring a snapshot older than the one on disk", "revision", s.Revision.String(), "enforced", applied.String())
		case order > 0:
			applied = s.Revision
			apply(s)
			if err := save(p.path, s); err != nil {
				p.log.Error(err, "a restart will not find the snapshot on disk", "revision", s.Revision.String())
			}
		}
	})
}

func load(path string) (Snapshot, error) {
	body, err := os.ReadFile(path) //nolint:gosec // The caller's own file.
	if err != nil {
		return Snapshot{}, err
	}
	var s Snapshot
	if err := json.Unmarshal(body, &s); err != nil {
		return Snapshot{}, fmt.Errorf("decoding %s: %w", path, err)
	}
	if s.Revision == (Revision{}) {
		return Snapshot{}, fmt.Errorf("%s holds no snapshot", path)
	}
	return s, nil
}

// save replaces the file in one step, once what replaces it is safe: a crash leaves the old or the new.
func save(path string, s Snapshot) error {
	body, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encoding snapshot: %w", err)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("saving snapshot: %w", err)
	}
	_, err = f.Write(body)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("saving snapshot: %w", errors.Join(err, os.Remove(f.Name())))
	}
	return nil
}
