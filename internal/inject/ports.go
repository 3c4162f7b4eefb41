// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// The sidecar's own ports, beside 15090, which it serves on loopback only.
const (
	adminPort = 15090
	probePort = 15091
	// firstPort is that of the first port that it stands before; the others follow.
	firstPort = 15101
	// mostPorts bounds how many there can be.
	mostPorts = 16
)

// port is a port of the application's whose requests the sidecar gets.
type port struct {
	// name of the container port, or its number where it has none.
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

// httpPorts gives the ports whose requests the sidecar gets: those that the pod lists, else those that speak HTTP or
// gRPC. Where they are redirected it may be any of the pod's, otherwise it has to have a name.
func httpPorts(pod *corev1.Pod, services []corev1.Service, redirect bool) (ports []port, skip *Skip) {
	if list, listed := pod.Annotations[v1alpha1.AnnotationPorts]; listed {
		ports, skip = listedPorts(&pod.Spec, list, redirect)
	} else {
		ports, skip = spokenPorts(pod, services, redirect)
	}
	if skip == nil && len(ports) > mostPorts {
		skip = invalid(v1alpha1.AnnotationPorts, "list at most %d of the pod's %d HTTP ports", mostPorts, len(ports))
	}
	return ports, skip
}

// listedPorts gives those of an annotation.
func listedPorts(spec *corev1.PodSpec, list string, redirect bool) ([]port, *Skip) {
	var ports []port
	for word := range strings.SplitSeq(list, ",") {
		word = strings.TrimSpace(word)
		p, ok := find(spec, word, redirect)
		switch again := func(other port) bool { return other.name == p.name || redirect && other.number == p.number }; {
		case ok && !slices.ContainsFunc(ports, again):
			ports = append(ports, p)
		case redirect:
			return nil, invalid(v1alpha1.AnnotationPorts, "%q is neither the name of a TCP port of the pod nor a number, or is there twice", word)
		default:
			return nil, invalid(v1alpha1.AnnotationPorts, "%q is not the name of a TCP port of the pod, or is there twice", word)
		}
	}
	return ports, nil
}

// find gives the port that a word of the annotation means: a name, or a number where it is redirected.
func find(spec *corev1.PodSpec, word string, redirect bool) (port, bool) {
	number, err := strconv.ParseUint(word, 10, 16)
	byNumber := redirect && err == nil && number > 0
	for _, p := range namedPorts(spec) {
		if p.Name == word || byNumber && p.ContainerPort == int32(number) {
			return port{name: p.Name, number: p.ContainerPort}, true
		}
	}
	return unnamed(int32(number)), byNumber
}

// unnamed is a port that is called by its number, which no name can be.
func unnamed(number int32) port { return port{name: strconv.Itoa(int(number)), number: number} }

// spokenPorts gives those that speak HTTP or gRPC.
func spokenPorts(pod *corev1.Pod, services []corev1.Service, redirect bool) ([]port, *Skip) {
	var ports []port
	for _, p := range reached(pod, services, redirect) {
		if speaksHTTP(p, leading(pod, services, p, redirect), redirect) {
			ports = append(ports, p)
		}
	}
	switch {
	case len(ports) > 0:
		return ports, nil
	case redirect:
		return nil, skip(ReasonNoHTTPPort, "no TCP port is called http, http-..., grpc or the like, and no Service's port that leads to one: name one so, or list ports in annotation %s", v1alpha1.AnnotationPorts)
	}
	return nil, skip(ReasonNoHTTPPort, "no TCP port is called http, http-..., grpc or the like: name one so, and give Services that targetPort, or list ports in annotation %s", v1alpha1.AnnotationPorts)
}

// reached gives the ports that Services may reach: those with a name, and where numbers count all the others that
// the pod or a Service knows of.
func reached(pod *corev1.Pod, services []corev1.Service, numbers bool) []port {
	var found []port
	for _, p := range namedPorts(&pod.Spec) {
		found = append(found, port{name: p.Name, number: p.ContainerPort})
	}
	if !numbers {
		return found
	}
	for _, c := range serving(&pod.Spec) {
		for _, p := range c.Ports {
			if tcp(p) {
				found = append(found, unnamed(p.ContainerPort))
			}
		}
	}
	for i := range services {
		for _, p := range services[i].Spec.Ports {
			if number := targetNumber(p); number > 0 && selects(&services[i], pod.Labels) {
				found = append(found, unnamed(number))
			}
		}
	}
	return oncePerNumber(found)
}

// oncePerNumber keeps the first port of each number.
func oncePerNumber(ports []port) []port {
	var kept []port
	for _, p := range ports {
		if !slices.ContainsFunc(kept, func(k port) bool { return k.number == p.number }) {
			kept = append(kept, p)
		}
	}
	return kept
}

// leading gives the ports of Services that lead to a port of the pod: by its name, and where numbers count by its
// number.
func leading(pod *corev1.Pod, services []corev1.Service, p port, numbers bool) []corev1.ServicePort {
	var found []corev1.ServicePort
	for i := range services {
		if !selects(&services[i], pod.Labels) {
			continue
		}
		for _, sp := range services[i].Spec.Ports {
			named := sp.TargetPort.Type == intstr.String && sp.TargetPort.StrVal == p.name
			if named || numbers && targetNumber(sp) == p.number {
				found = append(found, sp)
			}
		}
	}
	return found
}

// selects says whether a Service selects pods with these labels.
func selects(s *corev1.Service, labels map[string]string) bool {
	for key, want := range s.Spec.Selector {
		if got, ok := labels[key]; !ok || got != want {
			return false
		}
	}
	return len(s.Spec.Selector) > 0
}

// httpWords are the protocols that the sidecar understands, as an appProtocol or the first part of a port's name.
var httpWords = []string{"http", "http2", "h2c", "grpc", "ws", "kubernetes.io/h2c", "kubernetes.io/ws"}

// speaksHTTP believes what the Services' ports that lead there say, and only where they are silent the port's name;
// and theirs, where it may have none.
func speaksHTTP(p port, leading []corev1.ServicePort, nameless bool) bool {
	names, silent := []string{p.name}, true
	for _, sp := range leading {
		switch {
		case sp.AppProtocol == nil:
			names = append(names, sp.Name)
		case slices.Contains(httpWords, *sp.AppProtocol):
			return true
		default:
			silent = false
		}
	}
	if !nameless {
		names = names[:1]
	}
	return silent && slices.ContainsFunc(names, func(name string) bool {
		word, _, _ := strings.Cut(name, "-")
		return slices.Contains(httpWords, word)
	})
}

// clash finds what keeps the sidecar from getting the requests of its ports.
func clash(spec *corev1.PodSpec, plan plan) *Skip {
	ours := []int32{adminPort, probePort}
	for i := range plan.ports {
		ours = append(ours, listening(i))
	}
	for _, c := range serving(spec) {
		for _, p := range c.Ports {
			if tcp(p) && slices.Contains(ours, p.ContainerPort) {
				return skip(ReasonPortClash, "container %s has port %d, which the sidecar needs", c.Name, p.ContainerPort)
			}
			taken := slices.ContainsFunc(plan.ports, func(t port) bool { return t.name == p.Name })
			if taken && tcp(p) && p.HostPort != 0 && !plan.redirect {
				return skip(ReasonHostPort, "port %s of container %s is also port %d of the node, which leads past the sidecar: do without hostPort", p.Name, c.Name, p.HostPort)
			}
		}
	}
	for _, p := range plan.ports {
		if slices.Contains(ours, p.number) {
			return skip(ReasonPortClash, "the sidecar needs port %d itself", p.number)
		}
	}
	return nil
}

// targetNumber gives the number of the container port that a Service's port leads to. Without a targetPort it is its
// own number; it is 0 where a name is meant, or not TCP.
func targetNumber(p corev1.ServicePort) int32 {
	if p.TargetPort.Type != intstr.Int || p.Protocol != "" && p.Protocol != corev1.ProtocolTCP {
		return 0
	}
	return cmp.Or(p.TargetPort.IntVal, p.Port)
}
