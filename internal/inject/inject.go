// SPDX-License-Identifier: Apache-2.0

// Package inject puts the sidecar into pods.
//
// It is pure: what it needs of the cluster is an argument. The sidecar takes over the names of the pod's HTTP
// ports, so that Services which reach the application by name reach the sidecar instead, and asks for no
// privileges for that. Or connections to their numbers are redirected to it, which takes an init container with a
// privilege. Nothing else of the pod changes its meaning: probes and hooks reach the application as before, and a
// pod that the sidecar can't serve is left as it is, with the reason on it.
package inject

import (
	"maps"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// Container is the name of the sidecar's container.
const Container = "weir-sidecar"

// Namespace is what matters of a pod's namespace.
type Namespace struct {
	Name        string
	Labels      map[string]string
	Annotations map[string]string
	// Services of the namespace. Those that select the pod say what its ports speak.
	Services []corev1.Service
}

// Inject gives the pod with the sidecar in it, or the reason why not; then the pod it gives is the same as
// before but for the annotation that says so. It changes nothing that it is given, and injecting twice is the
// same as once.
func Inject(pod *corev1.Pod, ns Namespace, s Settings) (*corev1.Pod, *Skip) {
	pod = pod.DeepCopy()
	p, skip := consider(pod, ns)
	if skip != nil {
		if skip.Told() {
			annotate(pod, skip.Error())
		}
		return pod, skip
	}
	if p.redirect {
		redirect(pod, ns.Name, p, s)
	} else {
		takeOver(pod, ns.Name, p, s)
	}
	pod.Spec.Volumes = append(pod.Spec.Volumes, volumes()...)
	delete(pod.Annotations, v1alpha1.AnnotationNotInjected)
	pod.Labels = with(pod.Labels, v1alpha1.LabelInjected, "true")
	return pod, nil
}

// plan is what is to become of a pod.
type plan struct {
	// ports whose requests the sidecar gets.
	ports []port
	// redirect says that their numbers are redirected, and not their names taken over.
	redirect bool
	// chosen are the flags that the pod sets.
	chosen []string
}

// consider gives the plan for a pod, or says why it gets no sidecar.
func consider(pod *corev1.Pod, ns Namespace) (p plan, skip *Skip) {
	for _, objection := range []func(*corev1.Pod, Namespace) *Skip{notWanted, present, hostNetwork, platform, names} {
		if skip := objection(pod, ns); skip != nil {
			return plan{}, skip
		}
	}
	if p.redirect, skip = redirected(pod, ns); skip != nil {
		return plan{}, skip
	}
	if p.chosen, skip = choices(pod); skip != nil {
		return plan{}, skip
	}
	if p.ports, skip = httpPorts(pod, ns.Services, p.redirect); skip != nil {
		return plan{}, skip
	}
	return p, clash(&pod.Spec, p)
}

func annotate(pod *corev1.Pod, why string) {
	pod.Annotations = with(pod.Annotations, v1alpha1.AnnotationNotInjected, why)
}

// with gives the map with one more entry.
func with(m map[string]string, key, value string) map[string]string {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}
