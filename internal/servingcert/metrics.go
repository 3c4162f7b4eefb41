// SPDX-License-Identifier: Apache-2.0

package servingcert

import (
	"crypto/tls"

	"github.com/prometheus/client_golang/prometheus"
)

var expiration = prometheus.NewDesc("weir_webhook_certificate_expiration_timestamp_seconds",
	"When the certificate expires that the webhooks are served with, in seconds since the Unix epoch.", nil, nil)

// Expiration is a metric: when a certificate expires. It is absent while there is none.
type Expiration func(*tls.ClientHelloInfo) (*tls.Certificate, error)

// Describe implements [prometheus.Collector].
func (Expiration) Describe(descs chan<- *prometheus.Desc) { descs <- expiration }

// Collect implements [prometheus.Collector].
func (certificate Expiration) Collect(metrics chan<- prometheus.Metric) {
	c, err := certificate(nil)
	if err != nil {
		return
	}
	metrics <- prometheus.MustNewConstMetric(expiration, prometheus.GaugeValue, float64(c.Leaf.NotAfter.Unix()))
}
