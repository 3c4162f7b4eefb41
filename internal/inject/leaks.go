// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Leak is a port of a Service that leads to a pod, but not to its sidecar.
type Leak struct {
	Service string
	// Port is the name of the Service's port. Its only one may have none.
	Port string
	// Limited says that it leads to a port that the sidecar stands before, past it: the same requests are limited
	// elsewhere. It is false for a port that the sidecar doesn't stand before at all.
	Limited bool
	// Message says where the port leads to, and what to do about it.
	Message string
}

// Leaks gives the leaks of those Services that select a pod with these labels. Its sidecar stands before the ports
// taken, which are the application's numbers by name; where none are known there are no leaks either. Where they are
// redirected, those numbers lead to the sidecar too. A port that doesn't speak HTTP, as its Service says, is no leak.
func Leaks(labels map[string]string, services []corev1.Service, taken map[string]int32, redirected bool) []Leak {
	if len(taken) == 0 {
		return nil
	}
	var leaks []Leak
	for i := range services {
		s := &services[i]
		if !selects(s, labels) {
			continue
		}
		for _, p := range s.Spec.Ports {
			if leak, ok := leakOf(p, taken, redirected); ok {
				leak.Service, leak.Port = s.Name, p.Name
				leaks = append(leaks, leak)
			}
		}
	}
	return leaks
}

func leakOf(p corev1.ServicePort, taken map[string]int32, redirected bool) (leak Leak, ok bool) {
	if p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
		return Leak{}, false
	}
	if p.TargetPort.Type == intstr.Int {
		for _, name := range slices.Sorted(maps.Keys(taken)) {
			if targetNumber(p) == taken[name] && redirected {
				return Leak{}, false
			}
			if targetNumber(p) == taken[name] {
				return Leak{Limited: true, Message: fmt.Sprintf("leads to port %d by number, past the sidecar: set targetPort: %s", taken[name], name)}, true
			}
		}
	}
	if p.AppProtocol != nil && !slices.Contains(httpWords, *p.AppProtocol) || leadsToSidecar(p, taken) {
		return Leak{}, false
	}
	return Leak{Message: fmt.Sprintf("leads to port %s, which the sidecar does not stand before: let sectionName name another", target(p))}, true
}

// leadsToSidecar says whether a Service's port leads to one of the sidecar's listeners, by name or by number.
func leadsToSidecar(p corev1.ServicePort, taken map[string]int32) bool {
	if p.TargetPort.Type == intstr.String {
		_, ok := taken[p.TargetPort.StrVal]
		return ok
	}
	for i := range len(taken) {
		if targetNumber(p) == listening(i) {
			return true
		}
	}
	return false
}

// target is what a Service's port leads to.
func target(p corev1.ServicePort) string {
	if p.TargetPort.Type == intstr.Int {
		return fmt.Sprint(cmp.Or(p.TargetPort.IntVal, p.Port))
	}
	return p.TargetPort.StrVal
}
