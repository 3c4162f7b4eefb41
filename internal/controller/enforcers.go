// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/inject"
	"github.com/weir-dev/weir/internal/usage"
)

// enforcer is one that is expected to enforce, and what it reported last.
type enforcer struct {
	usage.Observed
	// running says that its pod is known to run. It is waited for as long as it does.
	running bool
	// labels are those of the pod as it is now. The report has those that the sidecar was started with.
	labels map[string]string
	// leaks of the Services that lead to the pod.
	leaks []inject.Leak
}

// roll knows since when each pod has been seen running. Its zero value is ready for use.
type roll struct {
	since map[types.UID]time.Time
	// next is what since will be after the look that is under way.
	next map[types.UID]time.Time
}

// begin begins a look at all namespaces.
func (r *roll) begin() { r.next = make(map[types.UID]time.Time, len(r.since)) }

// end ends the look, and forgets who has gone.
func (r *roll) end() { r.since = r.next }

// call gives the enforcers of a namespace, by the names of their pods: its injected pods that run, with the last
// report of each, and whoever else reports, as sidecars outside of pods do. A pod that is about to end is waited for
// no longer, nor is what it said believed.
func (r *roll) call(pods []metav1.PartialObjectMetadata, reports []usage.Observed, services []corev1.Service, now time.Time) []enforcer {
	latest := latestRuns(reports)
	enforcers := make([]enforcer, 0, max(len(pods), len(latest)))
	for i := range pods {
		pod := &pods[i]
		first, seen := r.since[pod.UID]
		if !seen {
			first = now
		}
		r.next[pod.UID] = first
		report, reported := latest[string(pod.UID)]
		delete(latest, string(pod.UID))
		if !pod.DeletionTimestamp.IsZero() {
			continue
		}
		if !reported {
			report.Pod, report.UID, report.Age = pod.Name, string(pod.UID), now.Sub(first)
		}
		enforcers = append(enforcers, enforcer{
			Observed: report, running: true, labels: pod.Labels,
			leaks: inject.Leaks(pod.Labels, services, report.Ports, pod.Annotations[v1alpha1.AnnotationInterception] == v1alpha1.InterceptionRedirect),
		})
	}
	for _, report := range latest {
		if first, left := r.since[types.UID(report.UID)]; left {
			r.next[types.UID(report.UID)] = first // Its last report may stay for minutes.
			continue
		}
		enforcers = append(enforcers, enforcer{Observed: report, labels: report.Labels})
	}
	slices.SortFunc(enforcers, func(a, b enforcer) int { return cmp.Or(cmp.Compare(a.Pod, b.Pod), cmp.Compare(a.UID, b.UID)) })
	return enforcers
}

// latestRuns leaves out what a sidecar reported before it was started again.
func latestRuns(reports []usage.Observed) map[string]usage.Observed {
	latest := make(map[string]usage.Observed, len(reports))
	for _, r := range reports {
		pod := cmp.Or(r.UID, r.Pod)
		if other, ok := latest[pod]; !ok || r.Age < other.Age {
			latest[pod] = r
		}
	}
	return latest
}
