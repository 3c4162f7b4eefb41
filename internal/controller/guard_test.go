// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/weir-dev/weir/internal/configstore"
)

func TestGuard(t *testing.T) {
	type step struct {
		after              time.Duration
		missing, published int
		lets               bool
	}
	for name, steps := range map[string][]step{
		"ten policies may go, however few there are":          {{missing: 10, published: 10, lets: true}},
		"eleven may, of twenty-two":                           {{missing: 11, published: 22, lets: true}},
		"eleven may not, of twenty-one":                       {{missing: 11, published: 21}},
		"all may not":                                         {{missing: 1000, published: 1000}},
		"they may not later either":                           {{missing: 1000, published: 1000}, {after: time.Hour, missing: 1000, published: 1000}},
		"many may, a few at a time":                           {{missing: 40, published: 100, lets: true}, {missing: 40, published: 60, lets: true}, {missing: 20, published: 20, lets: true}},
		"a step is measured by what there was a minute ago":   {{missing: 40, published: 100, lets: true}, {after: 59 * time.Second, missing: 40, published: 60, lets: true}},
		"a step isn't measured by what there was before that": {{missing: 40, published: 100, lets: true}, {after: 61 * time.Second, missing: 40, published: 60}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGuard(nil, newMemory(), nil)
			now := time.Now()
			for i, s := range steps {
				now = now.Add(s.after)
				if got := g.lets(s.missing, s.published, now); got != s.lets {
					t.Errorf("step %d: %d of %d may go: %t, want %t", i, s.missing, s.published, got, s.lets)
				}
			}
		})
	}
}

func TestMemoryLetsGoOfASnapshotButNotOfItsRevision(t *testing.T) {
	m := newMemory()
	empty := configstore.Snapshot{Namespace: "shop", Revision: configstore.Revision{Epoch: 1, Number: 1}, Policies: []configstore.Policy{}}
	m.keep("shop", empty, true)
	if diff := cmp.Diff(map[string]configstore.Revision{"shop": empty.Revision}, m.revisions()); diff != "" {
		t.Errorf("to be restored (-want +got):\n%s", diff)
	}
	m.keep("shop", empty, lasts(empty))
	if diff := cmp.Diff(map[string]configstore.Revision{}, m.revisions()); diff != "" {
		t.Errorf("to be restored when it was let go (-want +got):\n%s", diff)
	}
	if got, known := m.of("shop"); !known || got.Revision != empty.Revision {
		t.Errorf("what comes next would not come after %v", empty.Revision)
	}
}
