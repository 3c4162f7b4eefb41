// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// The sidecar's own ports, beside 15090, which it serves on loopback only.
const (
	adminPort = 15090
	probePort = 15091
	// firstPort is that of the first port that it takes over; the others follow.
	firstPort = 15101
	// mostPorts bounds how many can be taken over.
	mostPorts = 16
)

// port is a port of the application's that the sidecar takes over.
type port struct {
	// name that moves to the sidecar.
	name string
	// number that the application keeps.
	number int32
}

// serving gives the containers in which Kubernetes looks for the name of a Service's targetPort, in its order.
func serving(spec *corev1.PodSpec) []*corev1.Container {
	var all []*corev1.Container
	for i := range spec.Containers {
		all = append(all, &spec.Containers[i])
	}
	for i := range spec.InitContainers {
		if c := &spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			all = append(all, c)
		}
	}
	return all
}

// tcp says whether a port is one of TCP, as it is when nothing else is said.
func tcp(p corev1.ContainerPort) bool { return p.Protocol == "" || p.Protocol == corev1.ProtocolTCP }

// namedPorts gives the TCP ports that have a name: the first of each, which is the one that Services reach.
func namedPorts(spec *corev1.PodSpec) []corev1.ContainerPort {
	var named []corev1.ContainerPort
	for _, c := range serving(spec) {
		for _, p := range c.Ports {
			again := slices.ContainsFunc(named, func(n corev1.ContainerPort) bool { return n.Name == p.Name })
			if p.Name != "" && tcp(p) && !again {
				named = append(named, p)
			}
		}
	}
	return named
}

// httpPorts gives the ports to take over: those that the pod lists, else those that speak HTTP or gRPC.
func httpPorts(pod *corev1.Pod, services []corev1.Service) ([]port, *Skip) {
	named := namedPorts(&pod.Spec)
	var ports []port
	add := func(p corev1.ContainerPort) { ports = append(ports, port{name: p.Name, number: p.ContainerPort}) }
	list, listed := pod.Annotations[v1alpha1.AnnotationPorts]
	if listed {
		for name := range strings.SplitSeq(list, ",") {
			name = strings.TrimSpace(name)
			i := slices.IndexFunc(named, func(p corev1.ContainerPort) bool { return p.Name == name })
			if i < 0 || slices.ContainsFunc(ports, func(p port) bool { return p.name == name }) {
				return nil, skip(ReasonInvalidAnnotation, "%s: %q is not the name of a TCP port of the pod, or is there twice", v1alpha1.AnnotationPorts, name)
			}
			add(named[i])
		}
	} else {
		spoken := protocols(pod, services)
		for _, p := range named {
			if speaksHTTP(p.Name, spoken[p.Name]) {
				add(p)
			}
		}
	}
	switch {
	case len(ports) == 0:
		return nil, skip(ReasonNoHTTPPort, "no TCP port is called http, http-..., grpc or the like: name one so, and give Services that targetPort, or list ports in annotation %s", v1alpha1.AnnotationPorts)
	case len(ports) > mostPorts:
		return nil, skip(ReasonInvalidAnnotation, "%s: list at most %d of the pod's %d HTTP ports", v1alpha1.AnnotationPorts, mostPorts, len(ports))
	}
	return ports, nil
}

// protocols gives what the Services that select the pod say of its named ports.
func protocols(pod *corev1.Pod, services []corev1.Service) map[string][]string {
	spoken := map[string][]string{}
	for i := range services {
		if !selects(&services[i], pod) {
			continue
		}
		for _, p := range services[i].Spec.Ports {
			if p.AppProtocol != nil && p.TargetPort.Type == intstr.String {
				name := p.TargetPort.StrVal
				spoken[name] = append(spoken[name], *p.AppProtocol)
			}
		}
	}
	return spoken
}

func selects(s *corev1.Service, pod *corev1.Pod) bool {
	for key, want := range s.Spec.Selector {
		if got, ok := pod.Labels[key]; !ok || got != want {
			return false
		}
	}
	return len(s.Spec.Selector) > 0
}

// httpWords are the protocols that the sidecar understands, as an appProtocol or the first part of a port's name.
var httpWords = []string{"http", "http2", "h2c", "grpc", "ws", "kubernetes.io/h2c", "kubernetes.io/ws"}

// speaksHTTP believes what Services say, and only where they are silent the port's name.
func speaksHTTP(name string, spoken []string) bool {
	if len(spoken) > 0 {
		return slices.ContainsFunc(spoken, func(s string) bool { return slices.Contains(httpWords, s) })
	}
	word, _, _ := strings.Cut(name, "-")
	return slices.Contains(httpWords, word)
}

// clash finds what keeps the ports from being taken over.
func clash(spec *corev1.PodSpec, ports []port) *Skip {
	ours := []int32{adminPort, probePort}
	for i := range ports {
		ours = append(ours, firstPort+int32(i))
	}
	for _, c := range serving(spec) {
		for _, p := range c.Ports {
			if tcp(p) && slices.Contains(ours, p.ContainerPort) {
				return skip(ReasonPortClash, "container %s has port %d, which the sidecar needs", c.Name, p.ContainerPort)
			}
			taken := slices.ContainsFunc(ports, func(t port) bool { return t.name == p.Name })
			if taken && tcp(p) && p.HostPort != 0 {
				return skip(ReasonHostPort, "port %s of container %s is also port %d of the node, which leads past the sidecar: do without hostPort", p.Name, c.Name, p.HostPort)
			}
		}
	}
	return nil
}

// takeOver takes the port's name from every container that Services look at, and gives what used it there the
// number: the kubelet looks for a name in the probe's own container.
func takeOver(spec *corev1.PodSpec, taken port) {
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
func Bypassed(pod *corev1.Pod, services []corev1.Service) []string {
	ports, skip := httpPorts(pod, services)
	if skip != nil {
		return nil
	}
	var told []string
	for i := range services {
		s := &services[i]
		if !selects(s, pod) {
			continue
		}
		for _, p := range s.Spec.Ports {
			i := slices.IndexFunc(ports, func(taken port) bool { return leadsTo(p, taken.number) })
			if i >= 0 {
				told = append(told, fmt.Sprintf("Service %s reaches port %d by number, past the sidecar: set targetPort: %s", s.Name, ports[i].number, ports[i].name))
			}
		}
	}
	return told
}

// leadsTo says whether a Service's port leads to a container port of this number. Without a targetPort it leads to
// its own number.
func leadsTo(p corev1.ServicePort, number int32) bool {
	if p.TargetPort.Type != intstr.Int || p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
		return false
	}
	return cmp.Or(p.TargetPort.IntVal, p.Port) == number
}
