// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-dev/weir/api/v1alpha1"
)

func TestEvictions(t *testing.T) {
	gone := errors.New("gone")
	type answer struct {
		policy string
		err    error
	}
	for name, test := range map[string]struct {
		counters, snapshots []answer
		want, metric        string
	}{
		"a store that evicts nothing is no news": {
			[]answer{{"noeviction", nil}},
			[]answer{{"noeviction", nil}},
			"",
			"weir_store_evicts{store=\"counters\"} 0\nweir_store_evicts{store=\"snapshots\"} 0\n",
		},
		"one that evicts is named": {
			[]answer{{"allkeys-lru", nil}},
			[]answer{{"noeviction", nil}},
			"counters by allkeys-lru",
			"weir_store_evicts{store=\"counters\"} 1\nweir_store_evicts{store=\"snapshots\"} 0\n",
		},
		"both are": {
			[]answer{{"allkeys-lru", nil}},
			[]answer{{"volatile-ttl", nil}},
			"counters by allkeys-lru, snapshots by volatile-ttl",
			"weir_store_evicts{store=\"counters\"} 1\nweir_store_evicts{store=\"snapshots\"} 1\n",
		},
		"one that doesn't answer is as it was": {
			[]answer{{"allkeys-lru", nil}, {"", gone}},
			[]answer{{"", gone}, {"", gone}},
			"counters by allkeys-lru",
			"weir_store_evicts{store=\"counters\"} 1\n",
		},
		"one that is mended is forgotten": {
			[]answer{{"allkeys-lru", nil}, {"noeviction", nil}},
			[]answer{{"noeviction", nil}, {"noeviction", nil}},
			"",
			"weir_store_evicts{store=\"counters\"} 0\nweir_store_evicts{store=\"snapshots\"} 0\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			looks := 0
			next := func(answers []answer) func(context.Context) (string, error) {
				return func(context.Context) (string, error) { return answers[looks].policy, answers[looks].err }
			}
			board := NewBoard()
			e := NewEvictions(board, map[string]func(context.Context) (string, error){"counters": next(test.counters), "snapshots": next(test.snapshots)})
			for range test.counters {
				e.look(t.Context(), testr.New(t))
				looks++
			}
			if diff := cmp.Diff(test.want, board.evicting); diff != "" {
				t.Errorf("on the board (-want +got):\n%s", diff)
			}
			const help = "# HELP weir_store_evicts 1 for a store that throws away what it holds when it has no memory left, by what that is, and 0 for one that doesn't.\n# TYPE weir_store_evicts gauge\n"
			if err := testutil.CollectAndCompare(e.Metrics(), strings.NewReader(help+test.metric)); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAStoreThatEvictsIsReadyWithAWarning(t *testing.T) {
	got := storeReady(view{evicting: "counters by allkeys-lru"}, tally{})
	want := metav1.Condition{
		Type: v1alpha1.ConditionStoreReady, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonEvicts,
		Message: "The store can be reached, but evicts what it holds when it is full (counters by allkeys-lru): set its maxmemory-policy to noeviction",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("condition (-want +got):\n%s", diff)
	}
}
