// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-dev/weir/internal/limiter/guard"
)

// leaseMetrics tell what has become of leases.
type leaseMetrics struct{ leases *guard.Leases }

var (
	leaseDecisions = prometheus.NewDesc("weir_lease_decisions_total",
		"Hits of limits whose distribution is Leased, by what decided them: process or store.",
		[]string{"by"}, nil)
	leaseUnits = prometheus.NewDesc("weir_lease_units_total",
		"What was taken from counters ahead of time, and of that what was returned because nobody needed it, and lost because it could not be.",
		[]string{"outcome"}, nil)
)

// Describe implements [prometheus.Collector].
func (m leaseMetrics) Describe(descs chan<- *prometheus.Desc) {
	descs <- leaseDecisions
	descs <- leaseUnits
}

// Collect implements [prometheus.Collector].
func (m leaseMetrics) Collect(metrics chan<- prometheus.Metric) {
	tell := func(desc *prometheus.Desc, n int64, label string) {
		metrics <- prometheus.MustNewConstMetric(desc, prometheus.CounterValue, float64(n), label)
	}
	c := m.leases.Counts()
	tell(leaseDecisions, c.Local, "process")
	tell(leaseDecisions, c.Stored, "store")
	tell(leaseUnits, c.Taken, "taken")
	tell(leaseUnits, c.Returned, "returned")
	tell(leaseUnits, c.Lost, "lost")
}
