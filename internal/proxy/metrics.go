// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/weir-dev/weir/internal/limiter"
)

type metrics struct {
	decisions prometheus.Histogram
	waits     prometheus.Histogram
	waiting   prometheus.GaugeFunc
	failures  *prometheus.CounterVec
	bootstrap *prometheus.CounterVec
}

func newMetrics(engine *limiter.Engine) metrics {
	return metrics{
		decisions: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:        "weir_decision_duration_seconds",
			Help:        "Time to decide a request, without that in a queue.",
			ConstLabels: prometheus.Labels{"path": "proxy"},
			Buckets:     []float64{.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .02, .03, .05, .1},
		}),
		waits: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "weir_queue_wait_seconds",
			Help:    "Time that requests were held for their turn in a queue, or until their client left.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
		}),
		waiting: prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "weir_queue_waiting",
			Help: "Requests that are held for their turn in a queue now.",
		}, func() float64 { n, _ := engine.Waiting(); return float64(n) }),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weir_proxy_failures_total",
			Help: "Requests that no limit refused and that got no response of the application: 400 and 499 are the client's doing, 502 and 504 the application's.",
		}, []string{"status"}),
		bootstrap: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "weir_bootstrap_requests_total",
			Help: "Requests that arrived before any limits were known, and what became of them.",
		}, []string{"outcome"}),
	}
}

// decided counts a decision that took so long, of which the request was held for a part.
func (m metrics) decided(took, held time.Duration) {
	m.decisions.Observe((took - held).Seconds())
	if held > 0 {
		m.waits.Observe(held.Seconds())
	}
}

// Describe is part of prometheus.Collector.
func (p *Proxy) Describe(ch chan<- *prometheus.Desc) {
	p.metrics.decisions.Describe(ch)
	p.metrics.waits.Describe(ch)
	p.metrics.waiting.Describe(ch)
	p.metrics.failures.Describe(ch)
	p.metrics.bootstrap.Describe(ch)
}

// Collect is part of prometheus.Collector.
func (p *Proxy) Collect(ch chan<- prometheus.Metric) {
	p.metrics.decisions.Collect(ch)
	p.metrics.waits.Collect(ch)
	p.metrics.waiting.Collect(ch)
	p.metrics.failures.Collect(ch)
	p.metrics.bootstrap.Collect(ch)
}
