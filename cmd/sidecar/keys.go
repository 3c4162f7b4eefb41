// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/roster"
	"github.com/weir-dev/weir/internal/match"
)

// keyed gives the limits that have keys.
func keyed(policies []match.Policy) []limiter.LimitID {
	var ids []limiter.LimitID
	for _, p := range policies {
		for _, l := range p.Limits {
			if len(l.Key) > 0 {
				ids = append(ids, limiter.LimitID{Namespace: p.Namespace, Policy: p.Name, Limit: l.Name})
			}
		}
	}
	return ids
}

// keyMetrics tell how many keys are known.
type keyMetrics struct{ roster *roster.Roster }

var limitKeys = prometheus.NewDesc("weir_limit_keys",
	"Keys of a limit that have counters of their own, as far as this sidecar has seen them.",
	[]string{"namespace", "policy", "limit"}, nil)

// Describe implements [prometheus.Collector].
func (m keyMetrics) Describe(descs chan<- *prometheus.Desc) { descs <- limitKeys }

// Collect implements [prometheus.Collector].
func (m keyMetrics) Collect(metrics chan<- prometheus.Metric) {
	for _, c := range m.roster.Counts() {
		metrics <- prometheus.MustNewConstMetric(limitKeys, prometheus.GaugeValue, float64(c.Keys), c.ID.Namespace, c.ID.Policy, c.ID.Limit)
	}
}
