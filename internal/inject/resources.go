// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
)

// resources gives those of the sidecar. A pod that shares out resources as a whole has to do so with the sidecar
// too, for what containers ask for must not exceed the whole. And one that is Guaranteed stays so, or it could
// lose the cores that are its own.
func resources(spec *corev1.PodSpec, s Settings) corev1.ResourceRequirements {
	if spec.Resources != nil {
		return corev1.ResourceRequirements{}
	}
	r := *s.Resources.DeepCopy()
	if guaranteed(spec) {
		limits := corev1.ResourceList{}
		maps.Copy(limits, s.GuaranteedResources)
		r.Limits, r.Requests = limits, maps.Clone(limits)
	}
	return r
}

// guaranteed says whether every container may have as much as it asks for, and no more.
func guaranteed(spec *corev1.PodSpec) bool {
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			if !settled(&containers[i].Resources) {
				return false
			}
		}
	}
	return true
}

// settled says whether limits of processor and memory are set, and requests are the same; those that aren't set
// will be.
func settled(r *corev1.ResourceRequirements) bool {
	for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
		limit, ok := r.Limits[name]
		if !ok || limit.IsZero() {
			return false
		}
		if request, ok := r.Requests[name]; ok && request.Cmp(limit) != 0 {
			return false
		}
	}
	return true
}
