// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/weir-dev/weir/api/v1alpha1"
)

var policiesDesc = prometheus.NewDesc("weir_policies", "Number of RateLimitPolicies by the status of their Ready condition.", []string{"ready"}, nil)

// PolicyMetrics collects weir_policies{ready}: how many policies are Ready (True), are not (False), or
// have not been looked at (Unknown).
type PolicyMetrics struct {
	client  client.Reader
	elected <-chan struct{}
}

// NewPolicyMetrics gives a collector that counts what reader lists, which should be a cache. It counts
// nothing until elected is closed, so that each policy is counted by one manager.
func NewPolicyMetrics(reader client.Reader, elected <-chan struct{}) PolicyMetrics {
	return PolicyMetrics{client: reader, elected: elected}
}

// Describe implements prometheus.Collector.
func (m PolicyMetrics) Describe(descs chan<- *prometheus.Desc) { descs <- policiesDesc }

// Collect implements prometheus.Collector. A cache that can't be read gives no figures rather than wrong ones.
func (m PolicyMetrics) Collect(metrics chan<- prometheus.Metric) {
	select {
	case <-m.elected:
	default:
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var policies v1alpha1.RateLimitPolicyList
	if err := m.client.List(ctx, &policies, client.UnsafeDisableDeepCopy); err != nil {
		return
	}
	counts := map[metav1.ConditionStatus]float64{metav1.ConditionTrue: 0, metav1.ConditionFalse: 0, metav1.ConditionUnknown: 0}
	for i := range policies.Items {
		status := metav1.ConditionUnknown
		if c := meta.FindStatusCondition(policies.Items[i].Status.Conditions, v1alpha1.ConditionReady); c != nil {
			status = c.Status
		}
		counts[status]++
	}
	for status, n := range counts {
		metrics <- prometheus.MustNewConstMetric(policiesDesc, prometheus.GaugeValue, n, string(status))
	}
}
