// SPDX-License-Identifier: Apache-2.0

package inject_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-dev/weir/internal/inject"
)

func TestLeaks(t *testing.T) {
	checkout := map[string]string{"app": "checkout"}
	// The sidecar listens for admin at 15101, and for http at 15102.
	taken := map[string]int32{"http": 8080, "admin": 9090}
	past := []inject.Leak{{
		Service: "checkout", Port: "web", Limited: true, Message: "leads to port 8080 by number, past the sidecar: set targetPort: http",
	}}
	beside := func(port string) []inject.Leak {
		return []inject.Leak{{
			Service: "checkout", Port: "web", Message: "leads to port " + port + ", which the sidecar does not stand before: let sectionName name another",
		}}
	}
	for name, test := range map[string]struct {
		selector map[string]string
		port     corev1.ServicePort
		taken    map[string]int32
		redirect bool
		want     []inject.Leak
	}{
		"a name leads to the sidecar":                        {port: corev1.ServicePort{Port: 80, TargetPort: intstr.FromString("http")}},
		"a number leads past it":                             {port: corev1.ServicePort{Port: 80, TargetPort: intstr.FromInt32(8080)}, want: past},
		"unless numbers are redirected":                      {redirect: true, port: corev1.ServicePort{Port: 80, TargetPort: intstr.FromInt32(8080)}},
		"a number that isn't redirected leads past it":       {redirect: true, port: corev1.ServicePort{Port: 80, TargetPort: intstr.FromInt32(7070)}, want: beside("7070")},
		"no targetPort is the port's own number":             {port: corev1.ServicePort{Port: 8080}, want: past},
		"the number of a listener leads to it":               {port: corev1.ServicePort{Port: 80, TargetPort: intstr.FromInt32(15102)}},
		"the number after the last listener's does not":      {port: corev1.ServicePort{Port: 80, TargetPort: intstr.FromInt32(15103)}, want: beside("15103")},
		"another name is a port without the sidecar":         {port: corev1.ServicePort{Port: 80, TargetPort: intstr.FromString("debug")}, want: beside("debug")},
		"another number is a port without the sidecar":       {port: corev1.ServicePort{Port: 80, TargetPort: intstr.FromInt32(7070)}, want: beside("7070")},
		"a port that does not speak HTTP is none to limit":   {port: corev1.ServicePort{Port: 80, TargetPort: intstr.FromInt32(5432), AppProtocol: new("postgresql")}},
		"a port of UDP is none to limit":                     {port: corev1.ServicePort{Port: 8080, Protocol: corev1.ProtocolUDP}},
		"a Service of other pods does not matter":            {selector: map[string]string{"app": "cart"}, port: corev1.ServicePort{Port: 8080}},
		"a Service without a selector leads nowhere":         {selector: map[string]string{}, port: corev1.ServicePort{Port: 8080}},
		"a sidecar that does not tell its ports is believed": {taken: map[string]int32{}, port: corev1.ServicePort{Port: 8080}},
	} {
		t.Run(name, func(t *testing.T) {
			if test.selector == nil {
				test.selector = checkout
			}
			if test.taken == nil {
				test.taken = taken
			}
			test.port.Name = "web"
			service := corev1.Service{
				ObjectMeta: metav1.ObjectMeta{Name: "checkout"},
				Spec:       corev1.ServiceSpec{Selector: test.selector, Ports: []corev1.ServicePort{test.port}},
			}
			if diff := cmp.Diff(test.want, inject.Leaks(checkout, []corev1.Service{service}, test.taken, test.redirect)); diff != "" {
				t.Errorf("leaks (-want +got):\n%s", diff)
			}
		})
	}
}
