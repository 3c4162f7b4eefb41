// SPDX-License-Identifier: Apache-2.0

package inject_test

import (
	"reflect"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	psaapi "k8s.io/pod-security-admission/api"
	psa "k8s.io/pod-security-admission/policy"

	"github.com/weir-dev/weir/internal/inject"
	"github.com/weir-dev/weir/internal/inject/injecttest"
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
		wantNoLessSecure(t, security, before, after)
		wantSameProbes(t, before, after)
		if skip == nil {
			wantSidecarFirst(t, before, after)
		}
		if t.Failed() {
			t.Logf("of this pod:\n%s", cmp.Diff(before, after))
			return
		}
	}
	t.Logf("of %d pods: %v", pods, count)
	if len(count) < 10 || count["injected"] < pods/10 {
		t.Errorf("the pods vary too little: %v", count)
	}
}

func wantTheSameAgain(t *testing.T, once *corev1.Pod, ns inject.Namespace, s inject.Settings, skip *inject.Skip) {
	t.Helper()
	twice, again := inject.Inject(once, ns, s)
	if !reflect.DeepEqual(once, twice) { // cmp takes its time.
		t.Errorf("injected twice (-once +twice):\n%s", cmp.Diff(once, twice))
	}
	want := skip
	if skip == nil {
		want = &inject.Skip{Reason: inject.ReasonPresent, Message: "the pod has a container weir-sidecar"}
	}
	if diff := cmp.Diff(want, again); diff != "" {
		t.Errorf("the second answer (-want +got):\n%s", diff)
	}
}

// wantNoLessSecure wants every check of Pod Security that let the pod through to do so again.
func wantNoLessSecure(t *testing.T, e psa.Evaluator, before, after *corev1.Pod) {
	t.Helper()
	for _, level := range []psaapi.Level{psaapi.LevelBaseline, psaapi.LevelRestricted} {
		was, is := verdicts(e, level, before), verdicts(e, level, after)
		for i := range is {
			if was[i].Allowed && !is[i].Allowed {
				t.Errorf("the pod is no longer %s: %s (%s)", level, is[i].ForbiddenReason, is[i].ForbiddenDetail)
			}
		}
	}
}

func verdicts(e psa.Evaluator, level psaapi.Level, pod *corev1.Pod) []psa.CheckResult {
	return e.EvaluatePod(psaapi.LevelVersion{Level: level, Version: psaapi.LatestVersion()}, &pod.ObjectMeta, &pod.Spec)
}

// wantSameProbes wants every probe and hook to reach the port that it reached before.
func wantSameProbes(t *testing.T, before, after *corev1.Pod) {
	t.Helper()
	was, is := reached(before), reached(after)
	if diff := cmp.Diff(was, is); diff != "" {
		t.Errorf("ports of probes and hooks (-before +after):\n%s", diff)
	}
}

// reached gives the numbers that probes and hooks reach, by container: 0 is a name that no port of it has.
func reached(pod *corev1.Pod) map[string][]int32 {
	numbers := map[string][]int32{}
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		if c.Name == inject.Container {
			continue
		}
		for _, p := range targets(c) {
			number := p.IntVal
			if p.Type == intstr.String {
				i := slices.IndexFunc(c.Ports, func(cp corev1.ContainerPort) bool { return cp.Name == p.StrVal })
				if i >= 0 {
					number = c.Ports[i].ContainerPort
				}
			}
			numbers[c.Name] = append(numbers[c.Name], number)
		}
	}
	return numbers
}

func targets(c corev1.Container) []intstr.IntOrString {
	var hooks []corev1.LifecycleHandler
	for _, p := range []*corev1.Probe{c.LivenessProbe, c.ReadinessProbe, c.StartupProbe} {
		if p != nil {
			hooks = append(hooks, corev1.LifecycleHandler{HTTPGet: p.HTTPGet, TCPSocket: p.TCPSocket})
		}
	}
	if l := c.Lifecycle; l != nil {
		for _, h := range []*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
			if h != nil {
				hooks = append(hooks, *h)
			}
		}
	}
	var found []intstr.IntOrString
	for _, h := range hooks {
		if h.HTTPGet != nil {
			found = append(found, h.HTTPGet.Port)
		}
		if h.TCPSocket != nil {
			found = append(found, h.TCPSocket.Port)
		}
	}
	return found
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
	if diff := cmp.Diff(was, is); diff != "" {
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
