// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// takeOver gives the names of the ports to the sidecar, which comes after all init containers: it stands in the way of
// none of them.
func takeOver(pod *corev1.Pod, namespace string, p plan, s Settings) {
	for _, taken := range p.ports {
		takeName(&pod.Spec, taken)
	}
	sidecar := sidecar(namespace, p, s, resources(&pod.Spec, s))
	for i, taken := range p.ports {
		sidecar.Ports[i].Name = taken.name
	}
	pod.Spec.InitContainers = append(pod.Spec.InitContainers, sidecar)
}

// takeName takes the port's name from every container that Services look at, and gives what used it there the
// number: the kubelet looks for a name in the probe's own container.
func takeName(spec *corev1.PodSpec, taken port) {
	for _, c := range serving(spec) {
		for i := range c.Ports {
			if p := &c.Ports[i]; p.Name == taken.name && tcp(*p) {
				p.Name = ""
				byNumber(c, taken.name, p.ContainerPort)
			}
		}
	}
}

// byNumber has the container's probes and hooks use a number instead of a name.
func byNumber(c *corev1.Container, name string, number int32) {
	replace := func(p *intstr.IntOrString) {
		if p.Type == intstr.String && p.StrVal == name {
			*p = intstr.FromInt32(number)
		}
	}
	for _, probe := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if probe != nil {
			eachPort(probe.HTTPGet, probe.TCPSocket, replace)
		}
	}
	if c.Lifecycle == nil {
		return
	}
	for _, hook := range []*corev1.LifecycleHandler{c.Lifecycle.PostStart, c.Lifecycle.PreStop} {
		if hook != nil {
			eachPort(hook.HTTPGet, hook.TCPSocket, replace)
		}
	}
}

func eachPort(http *corev1.HTTPGetAction, tcp *corev1.TCPSocketAction, do func(*intstr.IntOrString)) {
	if http != nil {
		do(&http.Port)
	}
	if tcp != nil {
		do(&tcp.Port)
	}
}

// Bypassed tells of each Service that selects a pod, as it is before it is injected, and reaches one of the
// ports that the sidecar takes over by number. Such requests are never limited.
func Bypassed(pod *corev1.Pod, ns Namespace) []string {
	plan, skip := consider(pod, ns)
	if skip != nil || plan.redirect {
		return nil
	}
	var told []string
	for i := range ns.Services {
		s := &ns.Services[i]
		if !selects(s, pod.Labels) {
			continue
		}
		for _, p := range s.Spec.Ports {
			i := slices.IndexFunc(plan.ports, func(taken port) bool { return targetNumber(p) == taken.number })
			if i >= 0 {
				told = append(told, fmt.Sprintf("Service %s reaches port %d by number, past the sidecar: set targetPort: %s", s.Name, plan.ports[i].number, plan.ports[i].name))
			}
		}
	}
	return told
}
