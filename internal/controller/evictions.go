// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/weir-dev/weir/internal/redisclient"
)

// evictionInterval is how often stores are asked what they throw away.
const evictionInterval = 5 * time.Second

// Evictions finds the stores that throw away what they hold when they have no memory left: counters, and so limits that
// aren't kept, or snapshots. It puts them on the [Board], logs them, and tells them in the metric weir_store_evicts{store}.
// A store that doesn't answer, or not to us, is as it was last known. It runs on the leader only.
type Evictions struct {
	policies map[string]func(context.Context) (string, error)
	board    *Board
	evicts   *prometheus.GaugeVec
	// known is the policy of each store that has answered.
	known map[string]string
}

// NewEvictions gives one that asks for the maxmemory-policy of stores, by what they hold.
func NewEvictions(board *Board, policies map[string]func(context.Context) (string, error)) *Evictions {
	return &Evictions{
		policies: policies,
		board:    board,
		evicts: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "weir_store_evicts",
			Help: "1 for a store that throws away what it holds when it has no memory left, by what that is, and 0 for one that doesn't.",
		}, []string{"store"}),
		known: map[string]string{},
	}
}

// Metrics collects weir_store_evicts{store}.
func (e *Evictions) Metrics() prometheus.Collector { return e.evicts }

// Start asks until ctx is done.
func (e *Evictions) Start(ctx context.Context) error {
	tick := time.NewTicker(evictionInterval)
	defer tick.Stop()
	for {
		e.look(ctx, log.FromContext(ctx).WithName("evictions"))
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look asks each store once. Who is away, or keeps it to itself, is told of by others.
func (e *Evictions) look(ctx context.Context, log logr.Logger) {
	for _, store := range slices.Sorted(maps.Keys(e.policies)) {
		policy, err := e.policies[store](ctx)
		if err != nil || policy == e.known[store] {
			continue
		}
		e.known[store] = policy
		if policy == redisclient.NoEviction {
			e.evicts.WithLabelValues(store).Set(0)
			continue
		}
		e.evicts.WithLabelValues(store).Set(1)
		log.Info("the store evicts what it holds when it is full: set its maxmemory-policy to noeviction", "store", store, "policy", policy)
	}
	e.board.storeEvicts(e.evicting())
}

// evicting names the stores that throw things away, and how. It is empty if none does.
func (e *Evictions) evicting() string {
	var all []string
	for _, store := range slices.Sorted(maps.Keys(e.known)) {
		if policy := e.known[store]; policy != redisclient.NoEviction {
			all = append(all, store+" by "+policy)
		}
	}
	return strings.Join(all, ", ")
}
