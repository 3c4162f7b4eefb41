// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"maps"
	"sync"

	"github.com/weir-dev/weir/internal/configstore"
)

// memory is what the store is known to have held of each namespace. It is safe for concurrent use.
type memory struct {
	mu        sync.Mutex
	snapshots map[string]configstore.Snapshot
	// letGo are the namespaces whose snapshots may expire. The next ones have to come after them all the same.
	letGo map[string]bool
}

func newMemory() *memory {
	return &memory{snapshots: map[string]configstore.Snapshot{}, letGo: map[string]bool{}}
}

// of gives what the store held of a namespace: the zero revision when that was nothing, and false when it
// has not been looked at.
func (m *memory) of(namespace string) (configstore.Snapshot, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s, ok := m.snapshots[namespace]
	return s, ok
}

// keep notes what the store holds of a namespace. What is lasting has to be restored when the store has lost it.
func (m *memory) keep(namespace string, s configstore.Snapshot, lasting bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.snapshots[namespace] = s
	if lasting {
		delete(m.letGo, namespace)
	} else {
		m.letGo[namespace] = true
	}
}

// all gives what the store held of every namespace.
func (m *memory) all() map[string]configstore.Snapshot {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.snapshots)
}

func (m *memory) forget(namespace string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.snapshots, namespace)
	delete(m.letGo, namespace)
}

// revisions gives the revision of every namespace that the store should hold something of.
func (m *memory) revisions() map[string]configstore.Revision {
	m.mu.Lock()
	defer m.mu.Unlock()
	revisions := make(map[string]configstore.Revision, len(m.snapshots))
	for namespace, s := range m.snapshots {
		if s.Revision != (configstore.Revision{}) && !m.letGo[namespace] {
			revisions[namespace] = s.Revision
		}
	}
	return revisions
}
