// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/probe"
)

// RedirectContainer is the name of the init container that redirects connections.
const RedirectContainer = "weir-redirect"

// podSecurityLabel is that of namespaces with the profile that Pod Security holds their pods to.
const podSecurityLabel = "pod-security.kubernetes.io/enforce"

// redirected says whether the pod, or else its namespace, has connections redirected, or why that can't be.
func redirected(pod *corev1.Pod, ns Namespace) (bool, *Skip) {
	way, ok := pod.Annotations[v1alpha1.AnnotationInterception]
	if !ok {
		way = ns.Annotations[v1alpha1.AnnotationInterception]
	}
	switch way {
	case "", v1alpha1.InterceptionPortTakeover:
		return false, nil
	case v1alpha1.InterceptionRedirect:
	default:
		return false, invalid(v1alpha1.AnnotationInterception, "must be %s or %s", v1alpha1.InterceptionPortTakeover, v1alpha1.InterceptionRedirect)
	}
	// A profile that isn't known is enforced like the strictest.
	if profile := ns.Labels[podSecurityLabel]; profile != "" && profile != "privileged" {
		return false, skip(ReasonPodSecurity, "namespace %s has label %s: %s, which forbids the capability NET_ADMIN that redirecting takes: do with %s, or with another namespace", ns.Name, podSecurityLabel, profile, v1alpha1.InterceptionPortTakeover)
	}
	named := func(c corev1.Container) bool { return c.Name == RedirectContainer }
	if slices.ContainsFunc(pod.Spec.InitContainers, named) || slices.ContainsFunc(pod.Spec.Containers, named) {
		return false, skip(ReasonNameClash, "the pod has a container %s, as the sidecar does: call it something else", RedirectContainer)
	}
	return true, nil
}

// redirect leads connections to the ports to the sidecar. It comes first: an init container that goes on may have
// probes too, which from then on need the sidecar, and those after it wait for them.
func redirect(pod *corev1.Pod, namespace string, p plan, s Settings) {
	r := resources(&pod.Spec, s)
	sidecar := sidecar(namespace, p, s, r)
	sidecar.Args = append(sidecar.Args, askBySidecar(&pod.Spec, p.ports)...)
	pod.Spec.InitContainers = append([]corev1.Container{redirector(p.ports, s, r), sidecar}, pod.Spec.InitContainers...)
	pod.Annotations = with(pod.Annotations, v1alpha1.AnnotationInterception, v1alpha1.InterceptionRedirect)
}

// redirector gives the init container. It has the one capability that it needs, and is root since no other user can be
// given one.
func redirector(ports []port, s Settings, r corev1.ResourceRequirements) corev1.Container {
	security := securityContext()
	security.RunAsNonRoot, security.RunAsUser = new(false), new(int64(0))
	security.Capabilities.Add = []corev1.Capability{"NET_ADMIN"}
	args := []string{"redirect"}
	for i, p := range ports {
		args = append(args, fmt.Sprintf("%d:%d", p.number, listening(i)))
	}
	return corev1.Container{
		Name:            RedirectContainer,
		Image:           s.Image,
		ImagePullPolicy: s.ImagePullPolicy,
		Args:            args,
		Resources:       r,
		SecurityContext: security,
		VolumeMounts:    []corev1.VolumeMount{noToken()},
	}
}

// askBySidecar has the sidecar ask the application what the kubelet would ask it at ports that are redirected, and
// gives the flags that say what.
func askBySidecar(spec *corev1.PodSpec, ports []port) []string {
	var flags []string
	for _, c := range serving(spec) {
		ask := func(name string, h *corev1.ProbeHandler) bool {
			asked, number := question(c, h)
			if !slices.ContainsFunc(ports, func(p port) bool { return p.number == number }) {
				return false
			}
			path := probe.Path(c.Name, name)
			// In arguments a dollar may begin the name of a variable.
			flags = append(flags, "--app-probe="+strings.ReplaceAll(probe.Format(path, asked), "$", "$$"))
			*h = corev1.ProbeHandler{HTTPGet: atProbePort(path)}
			return true
		}
		for name, p := range map[string]*corev1.Probe{"startup": c.StartupProbe, "liveness": c.LivenessProbe, "readiness": c.ReadinessProbe} {
			if p != nil {
				ask(name, &p.ProbeHandler)
			}
		}
		for name, hook := range hooks(c) {
			h := corev1.ProbeHandler{HTTPGet: hook.HTTPGet.DeepCopy()}
			h.HTTPGet.Protocol = nil // The kubelet heeds it in probes only.
			if ask(name, &h) {
				hook.HTTPGet = h.HTTPGet
			}
		}
	}
	slices.Sort(flags)
	return flags
}

// hooks gives a container's hooks that are requests.
func hooks(c *corev1.Container) map[string]*corev1.LifecycleHandler {
	found := map[string]*corev1.LifecycleHandler{}
	if c.Lifecycle != nil {
		found["postStart"], found["preStop"] = c.Lifecycle.PostStart, c.Lifecycle.PreStop
	}
	maps.DeleteFunc(found, func(_ string, h *corev1.LifecycleHandler) bool { return h == nil || h.HTTPGet == nil })
	return found
}

// question gives what the kubelet asks the pod itself, and the number of the port: 0 where it asks somebody else,
// or runs something.
func question(c *corev1.Container, h *corev1.ProbeHandler) (probe.Probe, int32) {
	switch {
	case h.HTTPGet != nil && h.HTTPGet.Host == "":
		number := numberOf(c, h.HTTPGet.Port)
		return probe.Probe{HTTPGet: httpQuestion(h.HTTPGet, number)}, number
	case h.TCPSocket != nil && h.TCPSocket.Host == "":
		number := numberOf(c, h.TCPSocket.Port)
		return probe.Probe{TCPSocket: &probe.TCPSocket{Port: uint16(number)}}, number
	case h.GRPC != nil:
		g := &probe.GRPC{Port: uint16(h.GRPC.Port), TLS: h.GRPC.Mode != nil && *h.GRPC.Mode == corev1.GRPCProbeModeTLS}
		if h.GRPC.Service != nil {
			g.Service = *h.GRPC.Service
		}
		return probe.Probe{GRPC: g}, h.GRPC.Port
	}
	return probe.Probe{}, 0
}

func httpQuestion(g *corev1.HTTPGetAction, number int32) *probe.HTTPGet {
	asked := &probe.HTTPGet{
		Port:  uint16(number),
		Path:  g.Path,
		TLS:   strings.EqualFold(string(g.Scheme), string(corev1.URISchemeHTTPS)),
		HTTP2: g.Protocol != nil && *g.Protocol == corev1.HTTPProtocolHTTP2,
	}
	for _, h := range g.HTTPHeaders {
		asked.Headers = append(asked.Headers, probe.Header{Name: h.Name, Value: h.Value})
	}
	return asked
}

// numberOf gives the number of a container's port, or 0 if it has none of that name.
func numberOf(c *corev1.Container, p intstr.IntOrString) int32 {
	if p.Type == intstr.Int {
		return p.IntVal
	}
	for _, cp := range c.Ports {
		if cp.Name == p.StrVal {
			return cp.ContainerPort
		}
	}
	return 0
}
