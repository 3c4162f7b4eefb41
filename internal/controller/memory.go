// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"sync"

	"github.com/weir-dev/weir/internal/configstore"
)

// memory is what the store is known to have held of each namespace. It is safe for concurrent use.
type memory struct {
	mu        sync.Mutex
	snapshots map[string]configstore.Snapshot
}

func newMemory() *memory { return &memory{snapshots: map[string]configstore.Snapshot{}} }

// of gives what the store held of a namespace: the zero revision when that was nothing, and false when it
// has not been looked at.
func (m *memory) of(namespace string) (configstore.Snapshot, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.snapshots[namespace]
	return s, ok
}

func (m *memory) keep(namespace string, s configstore.Snapshot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.snapshots[namespace] = s
}

func (m *memory) forget(namespace string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.snapshots, namespace)
}

// revisions gives the revision of every namespace that the store should hold something of.
func (m *memory) revisions() map[string]configstore.Revision {
	m.mu.Lock()
	defer m.mu.Unlock()
	revisions := make(map[string]configstore.Revision, len(m.snapshots))
	for namespace, s := range m.snapshots {
		if s.Revision != (configstore.Revision{}) {
			revisions[namespace] = s.Revision
		}
	}
	return revisions
}
