// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	decisions prometheus.Histogram
	failures  *prometheus.CounterVec
	bootstrap *prometheus.CounterVec
}

func newMetrics() metrics {
	return metrics{
		decisions: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:        "weir_decision_duration_seconds",
			Help:        "Time to decide a request.",
			ConstLabels: prometheus.Labels{"path": "proxy"},
			Buckets:     []float64{.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .02, .03, .05, .1},
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weir_proxy_failures_total",
			Help: "Requests that were admitted and got no response of the application: 400 and 499 are the client's doing, 502 and 504 the application's.",
		}, []string{"status"}),
		bootstrap: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weir_bootstrap_requests_total",
			Help: "Requests that arrived before any limits were known, and what became of them.",
		}, []string{"outcome"}),
	}
}

// Describe is part of prometheus.Collector.
func (p *Proxy) Describe(ch chan<- *prometheus.Desc) {
	p.metrics.decisions.Describe(ch)
	p.metrics.failures.Describe(ch)
	p.metrics.bootstrap.Describe(ch)
}

// Collect is part of prometheus.Collector.
func (p *Proxy) Collect(ch chan<- prometheus.Metric) {
	p.metrics.decisions.Collect(ch)
	p.metrics.failures.Collect(ch)
	p.metrics.bootstrap.Collect(ch)
}
