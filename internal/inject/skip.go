// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// Skip is why a pod is left as it is. It is an answer, no failure.
type Skip struct {
	// Reason is one of the constants of this package.
	Reason string
	// Message tells the pod's author what to do about it.
	Message string
}

// Why a pod is left as it is.
const (
	// ReasonNotWanted says that neither the pod nor its namespace asks for the sidecar.
	ReasonNotWanted = "NotWanted"
	// ReasonPresent says that the pod has a container of the sidecar's name.
	ReasonPresent = "Present"
	// ReasonHostNetwork says that the pod's ports are the node's own.
	ReasonHostNetwork = "HostNetwork"
	// ReasonHostPort says that a port of the node leads past the sidecar.
	ReasonHostPort = "HostPort"
	// ReasonPlatform says that the sidecar doesn't run where the pod does.
	ReasonPlatform = "Platform"
	// ReasonNameClash says that the pod has a volume or container of a name that the sidecar needs.
	ReasonNameClash = "NameClash"
	// ReasonPortClash says that the pod has a port of a number that the sidecar needs.
	ReasonPortClash = "PortClash"
	// ReasonNoHTTPPort says that the pod has no port whose requests could be limited.
	ReasonNoHTTPPort = "NoHTTPPort"
	// ReasonPodSecurity says that the namespace forbids what redirecting takes.
	ReasonPodSecurity = "PodSecurity"
	// ReasonInvalidAnnotation says that the pod chooses what can't be.
	ReasonInvalidAnnotation = "InvalidAnnotation"
)

// Error is the reason and the message.
func (s *Skip) Error() string { return s.Reason + ": " + s.Message }

// Told says whether whoever made the pod has to know: they asked for the sidecar, and there is none.
func (s *Skip) Told() bool { return s.Reason != ReasonNotWanted && s.Reason != ReasonPresent }

func skip(reason, format string, args ...any) *Skip {
	return &Skip{Reason: reason, Message: fmt.Sprintf(format, args...)}
}

func invalid(annotation, format string, args ...any) *Skip {
	return skip(ReasonInvalidAnnotation, "%s: %s", annotation, fmt.Sprintf(format, args...))
}

// Wanted says whether a pod with these labels is to have the sidecar, in that namespace.
func Wanted(labels map[string]string, ns Namespace) bool {
	return notWanted(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: labels}}, ns) == nil
}

// ReasonIn gives the reason of a skip that was written onto a pod. It is empty for what is none of ours.
func ReasonIn(annotation string) string {
	reason, _, _ := strings.Cut(annotation, ":")
	if !slices.Contains(told, reason) {
		return ""
	}
	return reason
}

// told are the reasons that are written onto pods.
var told = []string{
	ReasonHostNetwork, ReasonHostPort, ReasonPlatform, ReasonNameClash, ReasonPortClash, ReasonNoHTTPPort, ReasonInvalidAnnotation,
	ReasonPodSecurity,
}

// notWanted heeds the pod before its namespace. Only a namespace that forbids the sidecar has the last word.
func notWanted(pod *corev1.Pod, ns Namespace) *Skip {
	here, there := pod.Labels[v1alpha1.LabelInject], ns.Labels[v1alpha1.LabelInject]
	switch {
	case there == v1alpha1.InjectDisabled:
		return skip(ReasonNotWanted, "namespace %s has label %s: %s", ns.Name, v1alpha1.LabelInject, there)
	case here == v1alpha1.InjectDisabled:
		return skip(ReasonNotWanted, "the pod has label %s: %s", v1alpha1.LabelInject, here)
	case here != v1alpha1.InjectEnabled && there != v1alpha1.InjectEnabled:
		return skip(ReasonNotWanted, "neither the pod nor namespace %s has label %s: %s", ns.Name, v1alpha1.LabelInject, v1alpha1.InjectEnabled)
	}
	return nil
}

// present leaves alone what was injected before, and pods whose authors have put the sidecar there themselves.
func present(pod *corev1.Pod, _ Namespace) *Skip {
	named := func(c corev1.Container) bool { return c.Name == Container }
	if slices.ContainsFunc(pod.Spec.InitContainers, named) || slices.ContainsFunc(pod.Spec.Containers, named) {
		return skip(ReasonPresent, "the pod has a container %s", Container)
	}
	return nil
}

func hostNetwork(pod *corev1.Pod, _ Namespace) *Skip {
	if pod.Spec.HostNetwork {
		return skip(ReasonHostNetwork, "the pod's ports are those of its node, where a sidecar of its own has no place: do without hostNetwork")
	}
	return nil
}

// architectures are those that the sidecar is built for.
var architectures = []string{"amd64", "arm64"}

func platform(pod *corev1.Pod, _ Namespace) *Skip {
	os := pod.Spec.NodeSelector[corev1.LabelOSStable]
	if pod.Spec.OS != nil {
		os = string(pod.Spec.OS.Name)
	}
	if os != "" && os != string(corev1.Linux) {
		return skip(ReasonPlatform, "the sidecar runs on linux, not on %s", os)
	}
	if arch := pod.Spec.NodeSelector[corev1.LabelArchStable]; arch != "" && !slices.Contains(architectures, arch) {
		return skip(ReasonPlatform, "there is no sidecar for %s", arch)
	}
	return nil
}

func names(pod *corev1.Pod, _ Namespace) *Skip {
	for _, v := range pod.Spec.Volumes {
		if slices.ContainsFunc(volumes(), func(ours corev1.Volume) bool { return ours.Name == v.Name }) {
			return skip(ReasonNameClash, "the pod has a volume %s, as the sidecar does: call it something else", v.Name)
		}
	}
	return nil
}
