// SPDX-License-Identifier: Apache-2.0

package inject_test

import (
	"cmp"
	"reflect"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	psaapi "k8s.io/pod-security-admission/api"
	psa "k8s.io/pod-security-admission/policy"

	"github.com/weir-dev/weir/internal/inject"
	"github.com/weir-dev/weir/internal/inject/injecttest"
	"github.com/weir-dev/weir/internal/probe"
	"github.com/weir-dev/weir/internal/redirect"
)

// pods is how many are made up.
const pods = 10_000

func TestOfPodsMadeUp(t *testing.T) {
	s := settings(t)
	m := injecttest.New(1)
	security, err := psa.NewEvaluator(psa.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	count := map[string]int{}
	for range pods {
		ns, before := m.Namespace("shop"), m.Pod()
		after, skip := inject.Inject(before, ns, s)
		reason := "injected"
		if skip != nil {
			reason = skip.Reason
		}
		count[reason]++
		wantTheSameAgain(t, after, ns, s, skip)
		wantNoLessSecure(t, security, ns, before, after)
		wantSameProbes(t, before, after)
		switch ports := redirected(t, after); {
		case skip != nil:
		case len(ports) == 0:
			wantSidecarFirst(t, before, after)
		default:
			count["redirected"]++
			wantNothingPastSidecar(t, before, after, ports)
		}
		if t.Failed() {
			t.Logf("of this pod:\n%s", gocmp.Diff(before, after))
			return
		}
	}
	t.Logf("of %d pods: %v", pods, count)
	if len(count) < 12 || count["injected"] < pods/10 || count["redirected"] < pods/20 {
		t.Errorf("the pods vary too little: %v", count)
	}
}

func wantTheSameAgain(t *testing.T, once *corev1.Pod, ns inject.Namespace, s inject.Settings, skip *inject.Skip) {
	t.Helper()
	twice, again := inject.Inject(once, ns, s)
	if !reflect.DeepEqual(once, twice) { // cmp takes its time.
		t.Errorf("injected twice (-once +twice):\n%s", gocmp.Diff(once, twice))
	}
	want := skip
	if skip == nil {
		want = &inject.Skip{Reason: inject.ReasonPresent, Message: "the pod has a container weir-sidecar"}
	}
	if diff := gocmp.Diff(want, again); diff != "" {
		t.Errorf("the second answer (-want +got):\n%s", diff)
	}
}

// wantNoLessSecure wants every check of Pod Security that let the pod through to do so again; and where it is
// redirected, that its namespace lets through what does so.
func wantNoLessSecure(t *testing.T, e psa.Evaluator, ns inject.Namespace, before, after *corev1.Pod) {
	t.Helper()
	enforced, _ := psaapi.ParseLevel(cmp.Or(ns.Labels["pod-security.kubernetes.io/enforce"], "privileged"))
	for _, level := range []psaapi.Level{psaapi.LevelBaseline, psaapi.LevelRestricted} {
		judged := after
		if level != enforced {
			judged = without(after, inject.RedirectContainer)
		}
		was, is := verdicts(e, level, before), verdicts(e, level, judged)
		for i := range is {
			if was[i].Allowed && !is[i].Allowed {
				t.Errorf("the pod is no longer %s: %s (%s)", level, is[i].ForbiddenReason, is[i].ForbiddenDetail)
			}
		}
	}
}

func without(pod *corev1.Pod, initContainer string) *corev1.Pod {
	pod = pod.DeepCopy()
	pod.Spec.InitContainers = slices.DeleteFunc(pod.Spec.InitContainers, func(c corev1.Container) bool { return c.Name == initContainer })
	return pod
}

func verdicts(e psa.Evaluator, level psaapi.Level, pod *corev1.Pod) []psa.CheckResult {
	return e.EvaluatePod(psaapi.LevelVersion{Level: level, Version: psaapi.LatestVersion()}, &pod.ObjectMeta, &pod.Spec)
}

// redirected gives the ports that are redirected.
func redirected(t *testing.T, pod *corev1.Pod) []int32 {
	t.Helper()
	var ports []int32
	for _, c := range pod.Spec.InitContainers {
		if c.Name != inject.RedirectContainer || len(c.Args) == 0 {
			continue
		}
		for _, arg := range c.Args[1:] {
			p, err := redirect.ParsePort(arg)
			if err != nil {
				t.Error(err)
			}
			ports = append(ports, int32(p.From))
		}
	}
	return ports
}

// wantSameProbes wants every probe and hook to ask the application what it asked before, through the sidecar or not.
func wantSameProbes(t *testing.T, before, after *corev1.Pod) {
	t.Helper()
	was, is := asked(t, before), asked(t, after)
	if reflect.DeepEqual(was, is) { // cmp takes its time.
		return
	}
	t.Errorf("what probes and hooks ask (-before +after):\n%s", gocmp.Diff(was, is))
}

// asked gives what probes and hooks ask in the end, by container.
func asked(t *testing.T, pod *corev1.Pod) map[string][]corev1.ProbeHandler {
	t.Helper()
	passedOn := map[string]probe.Probe{}
	for _, c := range pod.Spec.InitContainers {
		for _, arg := range c.Args {
			if value, ok := strings.CutPrefix(arg, "--app-probe="); ok {
				path, p, err := probe.Parse(strings.ReplaceAll(value, "$$", "$"))
				if err != nil {
					t.Error(err)
				}
				passedOn[path] = p
			}
		}
	}
	found := map[string][]corev1.ProbeHandler{}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.Name == inject.Container {
			continue
		}
		for _, h := range handlers(c) {
			p, ok := passedOn[pathOf(h)]
			if ok {
				h = handler(p)
			}
			found[c.Name] = append(found[c.Name], resolved(c, h))
		}
	}
	return found
}

func pathOf(h corev1.ProbeHandler) string {
	if h.HTTPGet == nil {
		return ""
	}
	return h.HTTPGet.Path
}

func handlers(c corev1.Container) []corev1.ProbeHandler { return append(probesOf(c), hooksOf(c)...) }

func probesOf(c corev1.Container) []corev1.ProbeHandler {
	var found []corev1.ProbeHandler
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p != nil {
			found = append(found, *p.ProbeHandler.DeepCopy())
		}
	}
	return found
}

func hooksOf(c corev1.Container) []corev1.ProbeHandler {
	var found []corev1.ProbeHandler
	if l := c.Lifecycle; l != nil {
		for _, h := range []*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
			if h != nil {
				h = h.DeepCopy()
				found = append(found, corev1.ProbeHandler{HTTPGet: h.HTTPGet, TCPSocket: h.TCPSocket, Exec: h.Exec})
			}
		}
	}
	return found
}

// handler gives what the sidecar asks as the kubelet would have been told to.
func handler(p probe.Probe) corev1.ProbeHandler {
	switch {
	case p.TCPSocket != nil:
		return corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(int32(p.TCPSocket.Port))}}
	case p.GRPC != nil:
		return corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(p.GRPC.Port), Service: &p.GRPC.Service}}
	}
	g := &corev1.HTTPGetAction{Path: p.HTTPGet.Path, Port: intstr.FromInt32(int32(p.HTTPGet.Port))}
	if p.HTTPGet.TLS {
		g.Scheme = corev1.URISchemeHTTPS
	}
	for _, h := range p.HTTPGet.Headers {
		g.HTTPHeaders = append(g.HTTPHeaders, corev1.HTTPHeader{Name: h.Name, Value: h.Value})
	}
	return corev1.ProbeHandler{HTTPGet: g}
}

// resolved gives the handler with its defaults, and numbers for the names of ports: 0 is a name that no port of the
// container has.
func resolved(c corev1.Container, h corev1.ProbeHandler) corev1.ProbeHandler {
	number := func(p *intstr.IntOrString) {
		if p.Type == intstr.String {
			i := slices.IndexFunc(c.Ports, func(cp corev1.ContainerPort) bool { return cp.Name == p.StrVal })
			*p = intstr.FromInt32(0)
			if i >= 0 {
				*p = intstr.FromInt32(c.Ports[i].ContainerPort)
			}
		}
	}
	switch {
	case h.HTTPGet != nil:
		number(&h.HTTPGet.Port)
		h.HTTPGet.Scheme = cmp.Or(h.HTTPGet.Scheme, corev1.URISchemeHTTP)
	case h.TCPSocket != nil:
		number(&h.TCPSocket.Port)
	case h.GRPC != nil && h.GRPC.Service == nil:
		h.GRPC.Service = new("")
	}
	return h
}

// wantNothingPastSidecar wants names to stay where they were, and no probe or hook of the kubelet's to be redirected.
func wantNothingPastSidecar(t *testing.T, before, after *corev1.Pod, ports []int32) {
	t.Helper()
	if diff := gocmp.Diff(byName(before), byName(after)); diff != "" {
		t.Errorf("what Services find by name (-before +after):\n%s", diff)
	}
	for _, c := range slices.Concat(after.Spec.InitContainers, after.Spec.Containers) {
		for _, h := range probesOf(c) {
			h = resolved(c, h)
			switch {
			case h.HTTPGet != nil && h.HTTPGet.Host == "" && slices.Contains(ports, h.HTTPGet.Port.IntVal),
				h.TCPSocket != nil && h.TCPSocket.Host == "" && slices.Contains(ports, h.TCPSocket.Port.IntVal),
				h.GRPC != nil && slices.Contains(ports, h.GRPC.Port):
				t.Errorf("container %s: the sidecar would answer %v", c.Name, h)
			}
		}
		for _, h := range hooksOf(c) { // The kubelet knows no others than those of HTTP.
			h = resolved(c, h)
			if h.HTTPGet != nil && h.HTTPGet.Host == "" && slices.Contains(ports, h.HTTPGet.Port.IntVal) {
				t.Errorf("container %s: the sidecar would limit %v", c.Name, h)
			}
		}
	}
}

// wantSidecarFirst wants Services to find the sidecar by the names that it has taken, and by all other names what
// they found before.
func wantSidecarFirst(t *testing.T, before, after *corev1.Pod) {
	t.Helper()
	was, is := byName(before), byName(after)
	sidecar := after.Spec.InitContainers[len(after.Spec.InitContainers)-1]
	for _, p := range sidecar.Ports {
		if _, ok := was[p.Name]; !ok {
			t.Errorf("the sidecar made up port %s", p.Name)
		}
		was[p.Name] = p.ContainerPort
	}
	if diff := gocmp.Diff(was, is); diff != "" {
		t.Errorf("what Services find by name (-want +got):\n%s", diff)
	}
}

// byName gives what a Service with a named TCP targetPort finds: containers first, then sidecars.
func byName(pod *corev1.Pod) map[string]int32 {
	found := map[string]int32{}
	sidecars := slices.DeleteFunc(slices.Clone(pod.Spec.InitContainers), func(c corev1.Container) bool { return c.RestartPolicy == nil })
	for _, c := range slices.Concat(pod.Spec.Containers, sidecars) {
		for _, p := range c.Ports {
			_, again := found[p.Name]
			if !again && p.Name != "" && (p.Protocol == "" || p.Protocol == corev1.ProtocolTCP) {
				found[p.Name] = p.ContainerPort
			}
		}
	}
	return found
}
