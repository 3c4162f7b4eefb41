// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	goredis "github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
	"github.com/weir-dev/weir/internal/redisclient"
)

// watched is a store whose failures are counted and logged, and the end of them too.
type watched struct {
	store    limiter.Store
	failures *prometheus.CounterVec
	// failing is whether the last that was heard of the store is a failure.
	failing atomic.Bool
	// last is the last failure of all.
	last atomic.Pointer[failure]
	log  logr.Logger
}

// failure is why the store didn't answer, and when.
type failure struct {
	reason string
	at     time.Time
}

// toldFor is how long a failure is told of in reports.
const toldFor = 10 * time.Second

func watch(s limiter.Store, log logr.Logger) *watched {
	w := &watched{store: s, log: log, failures: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "weir_store_errors_total",
		Help: "Calls that the store gave no answer to: for decisions, and to give back or renew what they took.",
	}, []string{"reason"})}
	for _, reason := range redisstore.Reasons() {
		w.failures.WithLabelValues(reason) // A counter that first shows at 1 has no increase to alert on.
	}
	return w
}

// Take implements [limiter.Store].
func (w *watched) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	verdicts, err := w.store.Take(ctx, hits)
	w.heard(err)
	return verdicts, err
}

// Refund implements [limiter.Store].
func (w *watched) Refund(ctx context.Context, charges []limiter.Charge) error {
	err := w.store.Refund(ctx, charges)
	w.heard(err)
	return err
}

// Renew implements [limiter.Store].
func (w *watched) Renew(ctx context.Context, charges []limiter.Charge) error {
	err := w.store.Renew(ctx, charges)
	w.heard(err)
	return err
}

// heard counts and tells how a call has ended.
func (w *watched) heard(err error) {
	switch {
	case err != nil:
		w.failures.WithLabelValues(redisstore.Reason(err)).Inc()
		w.failed(err)
	case w.failing.Load() && w.failing.CompareAndSwap(true, false): // Loading alone keeps the usual case cheap.
		w.log.Info("the store answers again")
	}
}

// greet pings the store's Redis, so that one which is away is told of before a request needs it.
func (w *watched) greet(ctx context.Context, client goredis.UniversalClient) {
	err := client.Ping(ctx).Err()
	// A user without the right to ping has had an answer all the same.
	if err != nil && ctx.Err() == nil && !goredis.HasErrorPrefix(err, "NOPERM") {
		w.failed(err)
	}
}

// evictionRetry is how often a Redis that doesn't answer is asked what it evicts.
const evictionRetry = 5 * time.Second

// warnOfEviction says in the log if the store's Redis throws away counters when it has no memory left. It asks until
// there is an answer, or ctx is done.
func (w *watched) warnOfEviction(ctx context.Context, client goredis.UniversalClient) {
	for {
		policy, err := redisclient.EvictionPolicy(ctx, client)
		switch {
		case err == nil && policy != redisclient.NoEviction:
			w.log.Info("the store evicts counters when it is full: set its maxmemory-policy to noeviction", "policy", policy)
			return
		case err == nil || goredis.HasErrorPrefix(err, "NOPERM"):
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(evictionRetry):
		}
	}
}

// reason gives the word for why the store didn't answer in the ten seconds before now, or nothing if it did.
func (w *watched) reason(now time.Time) string {
	if f := w.last.Load(); f != nil && now.Sub(f.at) < toldFor {
		return f.reason
	}
	return ""
}

func (w *watched) failed(err error) {
	w.failing.Store(true)
	w.last.Store(&failure{redisstore.Cause(err), time.Now()})
	w.log.Error(err, "the store did not answer", "reason", redisstore.Reason(err))
}
