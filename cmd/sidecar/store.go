// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
)

// watched is a store whose failures are counted and logged.
type watched struct {
	limiter.Store
	failures *prometheus.CounterVec
	log      logr.Logger
}

func watch(s limiter.Store, log logr.Logger) *watched {
	return &watched{Store: s, log: log, failures: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "weir_store_errors_total",
		Help: "Decisions that the store gave no answer for.",
	}, []string{"reason"})}
}

// Take implements [limiter.Store].
func (w *watched) Take(ctx context.Context, hits []limiter.Hit) ([]limiter.Verdict, error) {
	verdicts, err := w.Store.Take(ctx, hits)
	if err != nil {
		reason := redisstore.Reason(err)
		w.failures.WithLabelValues(reason).Inc()
		w.log.Error(err, "the store did not answer", "reason", reason)
	}
	return verdicts, err
}
