// SPDX-License-Identifier: Apache-2.0

package limiter

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Whatever order the scheduler wakes requests in that are due at the same moment, their slots decide.
func TestALineGoesOnInOrder(t *testing.T) {
	l := newLines()
	names := []string{"first", "second", "third", "last"}
	waiters := map[string]*waiter{}
	for i, name := range names {
		waiters[name] = &waiter{slot: int64(i / 2), turn: make(chan struct{}, 1)}
	}
	for _, name := range []string{"third", "first", "last", "second"} { // Of one slot, who came first goes first.
		l.join("a", waiters[name])
	}
	called := func() []string {
		var names []string
		for _, w := range l.byKey["a"] {
			if len(w.turn) == 0 {
				continue
			}
			for name := range waiters {
				if waiters[name] == w {
					names = append(names, name)
				}
			}
		}
		return names
	}
	want := func(when string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, called()); diff != "" {
			t.Errorf("%s, those called are (-want +got):\n%s", when, diff)
		}
	}
	l.arrive("a", waiters["last"])
	l.arrive("a", waiters["second"])
	want("while the first isn't due")
	l.arrive("a", waiters["first"])
	want("when the first is due", "first")
	l.leave("a", waiters["third"])
	want("when somebody behind leaves", "first")
	l.leave("a", waiters["first"])
	want("when the first has gone on", "second")
	l.leave("a", waiters["second"])
	want("when all between have gone", "last")
	l.leave("a", waiters["last"])
	if diff := cmp.Diff(map[string][]*waiter{}, l.byKey, cmp.AllowUnexported(waiter{})); diff != "" {
		t.Errorf("lines that are left (-want +got):\n%s", diff)
	}
}
