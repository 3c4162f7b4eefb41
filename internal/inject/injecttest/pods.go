// SPDX-License-Identifier: Apache-2.0

// Package injecttest makes pods that vary in all that the injector reads.
package injecttest

import (
	"fmt"
	"math/rand/v2"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/inject"
)

// Maker makes pods, at random but the same for the same seed. Most of them are valid, and most can be injected.
type Maker struct{ *rand.Rand }

// New gives a maker.
func New(seed uint64) Maker { return Maker{rand.New(rand.NewPCG(seed, 0))} } //nolint:gosec // Tests want to be repeated.

// Namespace gives a namespace of this name, with Services.
func (m Maker) Namespace(name string) inject.Namespace {
	ns := inject.Namespace{Name: name, Labels: map[string]string{}, Annotations: map[string]string{}}
	m.sometimes(0.9, func() { ns.Labels[v1alpha1.LabelInject] = v1alpha1.InjectEnabled })
	m.sometimes(0.1, func() { ns.Labels[v1alpha1.LabelInject] = pick(m, v1alpha1.InjectDisabled, "yes") })
	m.sometimes(0.4, func() {
		ns.Labels["pod-security.kubernetes.io/enforce"] = pick(m, "privileged", "baseline", "restricted", "unknown")
	})
	m.sometimes(0.4, func() { ns.Annotations[v1alpha1.AnnotationInterception] = v1alpha1.InterceptionRedirect })
	for range m.IntN(3) {
		ns.Services = append(ns.Services, m.service())
	}
	return ns
}

func (m Maker) service() corev1.Service {
	var s corev1.Service
	m.sometimes(0.8, func() { s.Spec.Selector = map[string]string{"app": pick(m, "checkout", "cart")} })
	for range 1 + m.IntN(2) {
		p := corev1.ServicePort{Name: m.portName(), TargetPort: pick(m, intstr.FromString(m.portName()), intstr.FromInt32(m.number()))}
		m.sometimes(0.5, func() { p.AppProtocol = new(pick(m, "http", "grpc", "kubernetes.io/h2c", "https", "mongo")) })
		s.Spec.Ports = append(s.Spec.Ports, p)
	}
	return s
}

// Pod gives a pod.
func (m Maker) Pod() *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "pod-", Labels: map[string]string{"app": pick(m, "checkout", "cart")}}}
	m.sometimes(0.2, func() {
		p.Labels[v1alpha1.LabelInject] = pick(m, v1alpha1.InjectEnabled, v1alpha1.InjectEnabled, v1alpha1.InjectDisabled, "")
	})
	m.annotate(p)
	s := &p.Spec
	s.RestartPolicy = pick(m, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever, "")
	m.sometimes(0.05, func() { s.HostNetwork = true })
	m.sometimes(0.1, func() { s.OS = &corev1.PodOS{Name: pick(m, corev1.Linux, corev1.Linux, corev1.Windows)} })
	m.sometimes(0.1, func() { s.NodeSelector = map[string]string{"kubernetes.io/os": pick(m, "linux", "windows")} })
	m.sometimes(0.1, func() { s.NodeSelector = map[string]string{"kubernetes.io/arch": pick(m, "amd64", "arm64", "s390x")} })
	m.sometimes(0.5, func() { s.SecurityContext = m.podSecurity() })
	m.sometimes(0.05, func() { s.Resources = m.resources() })
	m.sometimes(0.1, func() {
		s.Volumes = []corev1.Volume{{Name: pick(m, "data", "weir-state"), VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}}
	})
	for i := range 1 + m.IntN(3) {
		s.Containers = append(s.Containers, m.container(fmt.Sprintf("app-%d", i), true))
	}
	for i := range m.IntN(3) {
		c := m.container(fmt.Sprintf("init-%d", i), false)
		m.sometimes(0.5, func() {
			c = m.container(c.Name, true)
			c.RestartPolicy = new(corev1.ContainerRestartPolicyAlways)
		})
		s.InitContainers = append(s.InitContainers, c)
	}
	m.sometimes(0.02, func() {
		s.InitContainers = append(s.InitContainers, m.container(pick(m, inject.Container, inject.RedirectContainer), false))
	})
	return p
}

func (m Maker) annotate(p *corev1.Pod) {
	values := []struct {
		key    string
		choice []string
	}{
		{v1alpha1.AnnotationPorts, []string{"http", "web, grpc", "metrics", "", "nothing", "8080", "http,8080", "9090, 9099", "0"}},
		{v1alpha1.AnnotationInterception, []string{v1alpha1.InterceptionRedirect, v1alpha1.InterceptionPortTakeover, "redirect"}},
		{v1alpha1.AnnotationBootstrapMode, []string{"Open", "Closed", "closed"}},
		{v1alpha1.AnnotationDecisionTimeout, []string{"5ms", "1s", "0s", "$(POD_NAME)"}},
		{v1alpha1.AnnotationTrustedProxies, []string{"10.0.0.0/8", "192.0.2.1,2001:db8::/32", "10.1.2.3/8", "--redis=redis://evil"}},
		{v1alpha1.AnnotationLogLevel, []string{"debug", "error", "trace\n"}},
		{v1alpha1.AnnotationNotInjected, []string{"HostNetwork: of another time"}},
		{"ratelimit.weir.dev/image", []string{"evil"}},
	}
	for _, v := range values {
		m.sometimes(0.06, func() {
			if p.Annotations == nil {
				p.Annotations = map[string]string{}
			}
			p.Annotations[v.key] = pick(m, v.choice...)
		})
	}
}

func (m Maker) podSecurity() *corev1.PodSecurityContext {
	c := &corev1.PodSecurityContext{}
	m.sometimes(0.7, func() { c.RunAsNonRoot = new(true) })
	m.sometimes(0.3, func() { c.RunAsUser = new(pick(m, int64(0), 1000)) })
	m.sometimes(0.3, func() { c.FSGroup = new(int64(2000)) })
	m.sometimes(0.7, func() {
		c.SeccompProfile = &corev1.SeccompProfile{Type: pick(m, corev1.SeccompProfileTypeRuntimeDefault, corev1.SeccompProfileTypeUnconfined)}
	})
	return c
}

func (m Maker) container(name string, serves bool) corev1.Container {
	c := corev1.Container{Name: name, Image: "app"}
	m.sometimes(0.5, func() { c.Resources = *m.resources() })
	m.sometimes(0.5, func() { c.SecurityContext = m.security() })
	for range m.IntN(4) {
		m.addPort(&c)
	}
	if !serves {
		return c
	}
	m.sometimes(0.5, func() { c.LivenessProbe = m.probe() })
	m.sometimes(0.5, func() { c.ReadinessProbe = m.probe() })
	m.sometimes(0.3, func() { c.StartupProbe = m.probe() })
	m.sometimes(0.2, func() { c.Lifecycle = &corev1.Lifecycle{PreStop: m.hook()} })
	m.sometimes(0.1, func() { c.Lifecycle = &corev1.Lifecycle{PostStart: m.hook()} })
	return c
}

func (m Maker) addPort(c *corev1.Container) {
	p := corev1.ContainerPort{Name: m.portName(), ContainerPort: m.number(), Protocol: pick(m, corev1.ProtocolTCP, corev1.ProtocolTCP, corev1.ProtocolUDP, "")}
	m.sometimes(0.03, func() { p.HostPort = 80 })
	for _, other := range c.Ports {
		if other.Name == p.Name || other.ContainerPort == p.ContainerPort {
			return
		}
	}
	c.Ports = append(c.Ports, p)
}

func (m Maker) portName() string { return pick(m, "http", "http-admin", "grpc", "web", "metrics", "") }

func (m Maker) number() int32 {
	return pick[int32](m, 80, 8080, 8081, 8082, 9090, 9091, 8080, 8081, 8082, 9090, 9091, 8080, 8081, 8082, 9090, 9091, 15091, 15102)
}

func (m Maker) security() *corev1.SecurityContext {
	c := &corev1.SecurityContext{}
	m.sometimes(0.8, func() { c.AllowPrivilegeEscalation = new(false) })
	m.sometimes(0.8, func() { c.Capabilities = &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}} })
	m.sometimes(0.5, func() { c.RunAsNonRoot = new(true) })
	m.sometimes(0.5, func() { c.SeccompProfile = &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault} })
	return c
}

func (m Maker) resources() *corev1.ResourceRequirements {
	full := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1"), corev1.ResourceMemory: resource.MustParse("1Gi")}
	half := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("500m"), corev1.ResourceMemory: resource.MustParse("1Gi")}
	return pick(m,
		&corev1.ResourceRequirements{Limits: full},
		&corev1.ResourceRequirements{Limits: full, Requests: full},
		&corev1.ResourceRequirements{Limits: full, Requests: half},
		&corev1.ResourceRequirements{Requests: half},
	)
}

func (m Maker) probe() *corev1.Probe {
	p := &corev1.Probe{PeriodSeconds: 1}
	h := m.hook()
	p.HTTPGet, p.TCPSocket, p.Exec = h.HTTPGet, h.TCPSocket, h.Exec
	m.sometimes(0.1, func() {
		p.ProbeHandler = corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: m.number(), Service: pick(m, nil, new("shop.Cart"))}}
	})
	return p
}

func (m Maker) hook() *corev1.LifecycleHandler {
	port := intstr.FromInt32(m.number())
	if name := m.portName(); name != "" {
		port = pick(m, port, intstr.FromString(name))
	}
	host := ""
	m.sometimes(0.05, func() { host = "192.0.2.1" })
	return pick(m,
		&corev1.LifecycleHandler{HTTPGet: m.request(port, host)},
		&corev1.LifecycleHandler{TCPSocket: &corev1.TCPSocketAction{Port: port, Host: host}},
		&corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}},
	)
}

func (m Maker) request(port intstr.IntOrString, host string) *corev1.HTTPGetAction {
	g := &corev1.HTTPGetAction{Path: pick(m, "/", "/healthz?full=1", "/$(POD_NAME)/$$"), Port: port, Host: host}
	m.sometimes(0.3, func() { g.Scheme = pick(m, corev1.URISchemeHTTP, corev1.URISchemeHTTPS) })
	m.sometimes(0.3, func() {
		g.HTTPHeaders = []corev1.HTTPHeader{{Name: "Host", Value: "shop.example"}, {Name: "X-Probe", Value: pick(m, "$(POD_UID)", `"<&>\u2028"`)}}
	})
	return g
}

func (m Maker) sometimes(chance float64, do func()) {
	if m.Float64() < chance {
		do()
	}
}

func pick[T any](m Maker, choice ...T) T { return choice[m.IntN(len(choice))] }
