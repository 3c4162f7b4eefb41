// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-dev/weir/internal/policy"
)

func TestAServicesPortsLeadToNamesOrNumbers(t *testing.T) {
	got := serviceOf(&corev1.Service{Spec: corev1.ServiceSpec{
		Selector: map[string]string{"app": "checkout"},
		Ports: []corev1.ServicePort{
			{Name: "web", Port: 80, TargetPort: intstr.FromString("http")},
			{Name: "admin", Port: 81, TargetPort: intstr.FromInt32(8081)},
			{Name: "metrics", Port: 9090},
		},
	}})
	want := policy.Workload{
		Pods: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "checkout"}},
		Ports: []policy.Port{
			{Name: "web", Target: "http"}, {Name: "admin", Target: "8081"}, {Name: "metrics", Target: "9090"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("workload (-want +got):\n%s", diff)
	}
}
