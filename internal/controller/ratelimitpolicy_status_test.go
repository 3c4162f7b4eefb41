// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
	"github.com/weir-dev/weir/internal/policy"
	"github.com/weir-dev/weir/internal/usage"
)

// said is a condition without its message and times.
type said struct {
	Type, Status, Reason string
}

func TestStatus(t *testing.T) {
	good := aPolicy(2, 10)
	publishedAt := func(p *v1alpha1.RateLimitPolicy, number int64) *configstore.Policy {
		return &configstore.Policy{Policy: mustCompile(t, p), Since: configstore.Revision{Epoch: 1, Number: number}}
	}
	enforcer := func(name string, number int64, age time.Duration) usage.Observed {
		return usage.Observed{
			Age: age,
			Report: usage.Report{
				Enforcer: usage.Enforcer{Pod: name, UID: name, Labels: map[string]string{"app": "checkout"}},
				Revision: configstore.Revision{Epoch: 1, Number: number},
			},
		}
	}
	degraded := enforcer("a", 5, time.Second)
	degraded.Degraded = true
	degradedBy := func(name, reason string) usage.Observed {
		d := enforcer(name, 5, time.Second)
		d.Degraded, d.Reason = true, reason
		return d
	}
	flooded := enforcer("a", 5, time.Second)
	flooded.Limits = []usage.Limit{{Namespace: "shop", Policy: "a", Limit: "all", Counts: usage.Counts{Denied: 1, Overflowed: 1}}}
	stranger := enforcer("x", 1, time.Second)
	stranger.Labels = map[string]string{"app": "cart"}
	ahead := enforcer("a", 5, time.Second)
	ahead.Revision.Epoch = 2
	refusal := &policy.Refusal{Reason: v1alpha1.ReasonUnsupported}
	disabled := aPolicy(2, 10)
	disabled.Spec.Enforcement = v1alpha1.EnforcementDisabled

	now := time.Now()
	// Where there are pods, a and b have been seen to run for an hour.
	long := map[types.UID]time.Time{"a": now.Add(-time.Hour), "b": now.Add(-time.Hour)}
	pod := func(name string) metav1.PartialObjectMetadata {
		return metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), Labels: map[string]string{"app": "checkout"}}}
	}
	ending := pod("b")
	ending.DeletionTimestamp = &metav1.Time{Time: now}
	relabeled := enforcer("a", 5, time.Second)
	relabeled.Labels = map[string]string{"app": "cart"}
	leading := func(port corev1.ServicePort) []corev1.Service {
		return []corev1.Service{{
			ObjectMeta: metav1.ObjectMeta{Name: "checkout"},
			Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "checkout"}, Ports: []corev1.ServicePort{port}},
		}}
	}
	reporting := enforcer("a", 5, time.Second)
	reporting.Ports = map[string]int32{"http": 8080}
	without := bare{name: "c", labels: map[string]string{"app": "checkout"}, reason: reasonNotInjected, why: "has no sidecar"}
	unfit := bare{name: "c", labels: map[string]string{"app": "checkout"}, reason: "HostNetwork", why: "has no sidecar"}
	everything := aPolicy(2, 10)
	everything.Spec.TargetRefs, everything.Spec.Selector = nil, &metav1.LabelSelector{}

	for name, test := range map[string]struct {
		policy     *v1alpha1.RateLimitPolicy
		notice     notice
		pods       []metav1.PartialObjectMetadata
		services   []corev1.Service
		bare       []bare
		reports    []usage.Observed
		storeErr   error
		reportsErr error
		want       []said
		message    string // of Enforced, where it says more than the reason
		enforcers  *v1alpha1.Enforcers
		kstatus    status.Status
	}{
		"all is well": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			reports:   []usage.Observed{enforcer("a", 5, time.Second), enforcer("b", 6, time.Second), stranger},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "True", "Enforced"}, {"StoreReady", "True", "Reachable"}, {"Ready", "True", "Ready"}},
			enforcers: &v1alpha1.Enforcers{Expected: 2, Current: 2},
			kstatus:   status.CurrentStatus,
		},
		"one enforcer is behind": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			reports:   []usage.Observed{enforcer("a", 5, time.Second), enforcer("b", 4, time.Second)},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "False", "Pending"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "Pending"}, {"Reconciling", "True", "Pending"}},
			enforcers: &v1alpha1.Enforcers{Expected: 2, Current: 1},
			kstatus:   status.InProgressStatus,
		},
		"one enforcer follows a leader that nobody here knows": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			reports:   []usage.Observed{ahead},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "False", "Pending"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "Pending"}, {"Reconciling", "True", "Pending"}},
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 0},
			kstatus:   status.InProgressStatus,
		},
		"the limits of the namespace are too large": {
			notice:    notice{generation: 2, err: configstore.ErrTooLarge, published: publishedAt(aPolicy(1, 10), 3)},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "False", "PublishFailed"}, {"Enforced", "False", "Pending"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "PublishFailed"}, {"Reconciling", "True", "PublishFailed"}},
			enforcers: &v1alpha1.Enforcers{},
			kstatus:   status.InProgressStatus,
		},
		"the config store has gone away since": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			reports:   []usage.Observed{enforcer("a", 5, time.Second)},
			storeErr:  errors.New("gone"),
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "True", "Enforced"}, {"StoreReady", "False", "Unreachable"}, {"Ready", "False", "Unreachable"}, {"Reconciling", "True", "Unreachable"}},
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.InProgressStatus,
		},
		"one enforcer is silent": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			reports:   []usage.Observed{enforcer("a", 5, time.Second), enforcer("b", 5, 11*time.Second)},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "False", "NotReporting"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "NotReporting"}, {"Reconciling", "True", "NotReporting"}},
			enforcers: &v1alpha1.Enforcers{Expected: 2, Current: 1},
			kstatus:   status.InProgressStatus,
		},
		"one enforcer has been silent for so long that it is forgotten": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			reports:   []usage.Observed{enforcer("a", 5, time.Second), enforcer("b", 4, 61*time.Second)},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "True", "Enforced"}, {"StoreReady", "True", "Reachable"}, {"Ready", "True", "Ready"}},
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.CurrentStatus,
		},
		"a pod whose sidecar has not reported yet is waited for": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			pods:      []metav1.PartialObjectMetadata{pod("a"), pod("new")},
			reports:   []usage.Observed{enforcer("a", 5, time.Second)},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "False", "Pending"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "Pending"}, {"Reconciling", "True", "Pending"}},
			enforcers: &v1alpha1.Enforcers{Expected: 2, Current: 1},
			kstatus:   status.InProgressStatus,
		},
		"a pod that runs is missed for as long as it does": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			pods:      []metav1.PartialObjectMetadata{pod("a"), pod("b")},
			reports:   []usage.Observed{enforcer("a", 5, time.Second)},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "False", "NotReporting"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "NotReporting"}, {"Reconciling", "True", "NotReporting"}},
			enforcers: &v1alpha1.Enforcers{Expected: 2, Current: 1},
			kstatus:   status.InProgressStatus,
		},
		"a pod that is about to end is not waited for": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			pods:      []metav1.PartialObjectMetadata{pod("a"), ending},
			reports:   []usage.Observed{enforcer("a", 5, time.Second), enforcer("b", 4, time.Second)},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "True", "Enforced"}, {"StoreReady", "True", "Reachable"}, {"Ready", "True", "Ready"}},
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.CurrentStatus,
		},
		"a pod that has gone without taking leave is not missed": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			pods:      []metav1.PartialObjectMetadata{pod("a")},
			reports:   []usage.Observed{enforcer("a", 5, time.Second), enforcer("b", 5, 30*time.Second)},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "True", "Enforced"}, {"StoreReady", "True", "Reachable"}, {"Ready", "True", "Ready"}},
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.CurrentStatus,
		},
		"a pod that was labeled anew enforces what it was started with": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			pods:      []metav1.PartialObjectMetadata{pod("a")},
			reports:   []usage.Observed{relabeled},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "False", "Pending"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "Pending"}, {"Reconciling", "True", "Pending"}},
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 0},
			kstatus:   status.InProgressStatus,
		},
		"a Service leads to the pod through its sidecar": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			pods:      []metav1.PartialObjectMetadata{pod("a")},
			services:  leading(corev1.ServicePort{Name: "web", Port: 80, TargetPort: intstr.FromString("http")}),
			reports:   []usage.Observed{reporting},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "True", "Enforced"}, {"StoreReady", "True", "Reachable"}, {"Ready", "True", "Ready"}},
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.CurrentStatus,
		},
		"a Service leads past the sidecar": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			pods:      []metav1.PartialObjectMetadata{pod("a")},
			services:  leading(corev1.ServicePort{Name: "web", Port: 80, TargetPort: intstr.FromInt32(8080)}),
			reports:   []usage.Observed{reporting},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "False", "NotIntercepted"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "NotIntercepted"}, {"Reconciling", "True", "NotIntercepted"}},
			message:   "Pod a: port web of Service checkout leads to port 8080 by number, past the sidecar: set targetPort: http",
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.InProgressStatus,
		},
		"a Service leads to a port that no sidecar stands before": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			pods:      []metav1.PartialObjectMetadata{pod("a")},
			services:  leading(corev1.ServicePort{Name: "web", Port: 80, TargetPort: intstr.FromString("admin")}),
			reports:   []usage.Observed{reporting},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "False", "NotIntercepted"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "NotIntercepted"}, {"Reconciling", "True", "NotIntercepted"}},
			message:   "Pod a: port web of Service checkout leads to port admin, which the sidecar does not stand before: let sectionName name another",
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.InProgressStatus,
		},
		"a policy without a Service for a target minds only what leads past a sidecar": {
			policy:    everything,
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(everything, 5)},
			pods:      []metav1.PartialObjectMetadata{pod("a")},
			services:  leading(corev1.ServicePort{Name: "web", Port: 80, TargetPort: intstr.FromString("admin")}),
			reports:   []usage.Observed{reporting},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "True", "Enforced"}, {"StoreReady", "True", "Reachable"}, {"Ready", "True", "Ready"}},
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.CurrentStatus,
		},
		"a pod of the target lacks its sidecar": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			pods:      []metav1.PartialObjectMetadata{pod("a")},
			bare:      []bare{without},
			reports:   []usage.Observed{reporting},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "False", "NotIntercepted"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "NotIntercepted"}, {"Reconciling", "True", "NotIntercepted"}},
			message:   "Pod c has no sidecar",
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.InProgressStatus,
		},
		"a pod of the target that can't have a sidecar is told when it is named, and no other pod has one": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			bare:      []bare{unfit, unfit, unfit},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "False", "NotIntercepted"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "NotIntercepted"}, {"Reconciling", "True", "NotIntercepted"}},
			message:   "Pod c has no sidecar (so with 2 more pods)",
			enforcers: &v1alpha1.Enforcers{},
			kstatus:   status.InProgressStatus,
		},
		"a policy for all enforced pods isn't about those that can't be": {
			policy:    everything,
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(everything, 5)},
			pods:      []metav1.PartialObjectMetadata{pod("a")},
			bare:      []bare{unfit},
			reports:   []usage.Observed{reporting},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "True", "Enforced"}, {"StoreReady", "True", "Reachable"}, {"Ready", "True", "Ready"}},
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.CurrentStatus,
		},
		"the pods can't be listed": {
			notice:     notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			reportsErr: podsError{errors.New("forbidden")},
			want:       []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "Unknown", "Unreachable"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "Unreachable"}, {"Reconciling", "True", "Unreachable"}},
			message:    "The list of the namespace's pods can't be read",
			kstatus:    status.InProgressStatus,
		},
		"an enforcer that crashed and runs again is one": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			reports:   []usage.Observed{enforcer("a", 4, 20*time.Second), enforcer("a", 5, time.Second)},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "True", "Enforced"}, {"StoreReady", "True", "Reachable"}, {"Ready", "True", "Ready"}},
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.CurrentStatus,
		},
		"no enforcer holds nothing back": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "Unknown", "NoEnforcers"}, {"StoreReady", "True", "Reachable"}, {"Ready", "True", "NoEnforcers"}},
			enforcers: &v1alpha1.Enforcers{},
			kstatus:   status.CurrentStatus,
		},
		"a disabled policy enforces nothing, and is ready": {
			policy:    disabled,
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(disabled, 5)},
			reports:   []usage.Observed{enforcer("a", 5, time.Second)},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "Unknown", "Disabled"}, {"StoreReady", "True", "Reachable"}, {"Ready", "True", "Disabled"}},
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.CurrentStatus,
		},
		"an enforcer fails open": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			reports:   []usage.Observed{degraded},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "True", "Enforced"}, {"StoreReady", "False", "Degraded"}, {"Ready", "False", "Degraded"}, {"Reconciling", "True", "Degraded"}},
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.InProgressStatus,
		},
		"an enforcer's store has no memory left": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			reports:   []usage.Observed{degradedBy("a", "timeout"), degradedBy("b", "oom"), degradedBy("c", "readonly")},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "True", "Enforced"}, {"StoreReady", "False", "StoreFull"}, {"Ready", "False", "StoreFull"}, {"Reconciling", "True", "StoreFull"}},
			enforcers: &v1alpha1.Enforcers{Expected: 3, Current: 3},
			kstatus:   status.InProgressStatus,
		},
		"an enforcer times out": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			reports:   []usage.Observed{degradedBy("a", "timeout")},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "True", "Enforced"}, {"StoreReady", "False", "Degraded"}, {"Ready", "False", "Degraded"}, {"Reconciling", "True", "Degraded"}},
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.InProgressStatus,
		},
		"a flood of keys is told, and makes no policy look broken": {
			notice:    notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			reports:   []usage.Observed{flooded, enforcer("b", 5, time.Second)},
			want:      []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "True", "TooManyKeys"}, {"StoreReady", "True", "Reachable"}, {"Ready", "True", "TooManyKeys"}},
			message:   `Generation 2 is enforced by 2 of 2 enforcers, but more keys have come lately than can have counters: the others share one under limit "all". Look at who sends them, or raise --max-keys-per-policy of the sidecar`,
			enforcers: &v1alpha1.Enforcers{Expected: 2, Current: 2},
			kstatus:   status.CurrentStatus,
		},
		"a bad edit keeps what was accepted": {
			notice:    notice{generation: 2, epoch: 1, refusal: refusal, published: publishedAt(aPolicy(1, 10), 3)},
			reports:   []usage.Observed{enforcer("a", 5, time.Second)},
			want:      []said{{"Accepted", "False", "Unsupported"}, {"Programmed", "False", "LastAcceptedKept"}, {"Enforced", "False", "Pending"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "Unsupported"}, {"Stalled", "True", "Unsupported"}},
			enforcers: &v1alpha1.Enforcers{Expected: 1, Current: 1},
			kstatus:   status.FailedStatus,
		},
		"a target that isn't there yet is waited for": {
			notice:    notice{generation: 2, refusal: &policy.Refusal{Reason: v1alpha1.ReasonTargetNotFound}},
			want:      []said{{"Accepted", "False", "TargetNotFound"}, {"Programmed", "False", "NotAccepted"}, {"Enforced", "False", "Pending"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "TargetNotFound"}, {"Reconciling", "True", "TargetNotFound"}},
			enforcers: &v1alpha1.Enforcers{},
			kstatus:   status.InProgressStatus,
		},
		"a bad first spec": {
			notice:    notice{generation: 2, refusal: refusal},
			want:      []said{{"Accepted", "False", "Unsupported"}, {"Programmed", "False", "NotAccepted"}, {"Enforced", "False", "Pending"}, {"StoreReady", "True", "Reachable"}, {"Ready", "False", "Unsupported"}, {"Stalled", "True", "Unsupported"}},
			enforcers: &v1alpha1.Enforcers{},
			kstatus:   status.FailedStatus,
		},
		"an edit while the config store is away": {
			notice:     notice{generation: 2, err: errors.New("gone"), published: publishedAt(aPolicy(1, 10), 3)},
			reportsErr: errors.New("gone"),
			want:       []said{{"Accepted", "True", "Accepted"}, {"Programmed", "False", "PublishFailed"}, {"Enforced", "False", "Pending"}, {"StoreReady", "False", "Unreachable"}, {"Ready", "False", "PublishFailed"}, {"Reconciling", "True", "PublishFailed"}},
			enforcers:  nil,
			kstatus:    status.InProgressStatus,
		},
		"the reports can't be read": {
			notice:     notice{generation: 2, epoch: 1, published: publishedAt(good, 5)},
			reportsErr: errors.New("gone"),
			want:       []said{{"Accepted", "True", "Accepted"}, {"Programmed", "True", "Programmed"}, {"Enforced", "Unknown", "Unreachable"}, {"StoreReady", "False", "Unreachable"}, {"Ready", "False", "Unreachable"}, {"Reconciling", "True", "Unreachable"}},
			enforcers:  nil,
			kstatus:    status.InProgressStatus,
		},
	} {
		t.Run(name, func(t *testing.T) {
			p := good
			if test.policy != nil {
				p = test.policy
			}
			p = p.DeepCopy()
			r := roll{}
			if test.pods != nil {
				r.since = long
			}
			r.begin()
			p.Status = statusOf(p, view{
				notice:     test.notice,
				observed:   observe(r.call(test.pods, test.reports, test.services, now), usage.Totals(test.reports)),
				bare:       test.bare,
				storeErr:   test.storeErr,
				reportsErr: test.reportsErr,
			})
			var got []said
			for _, c := range p.Status.Conditions {
				got = append(got, said{c.Type, string(c.Status), c.Reason})
				if c.Type == v1alpha1.ConditionEnforced && test.message != "" && c.Message != test.message {
					t.Errorf("Enforced says %q, want %q", c.Message, test.message)
				}
				if c.ObservedGeneration != 2 || c.Message == "" && test.notice.refusal == nil {
					t.Errorf("condition %+v has no message, or another generation", c)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("conditions (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.enforcers, p.Status.Enforcers); diff != "" {
				t.Errorf("enforcers (-want +got):\n%s", diff)
			}
			if got := kstatus(t, p); got != test.kstatus {
				t.Errorf("kstatus takes the object for %s, want %s", got, test.kstatus)
			}
		})
	}
}

func TestStatusBeforeTheFirstLook(t *testing.T) {
	p := aPolicy(1, 10)
	p.Status.ObservedGeneration = -1
	if got := kstatus(t, p); got != status.InProgressStatus {
		t.Errorf("kstatus takes the object for %s, want %s", got, status.InProgressStatus)
	}
}

func TestTheTimeOfATransitionIsKept(t *testing.T) {
	long := metav1.NewTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
	p := aPolicy(1, 10)
	p.Status.Conditions = []metav1.Condition{{Type: "Accepted", Status: "True", Reason: "Accepted", LastTransitionTime: long}}
	s := statusOf(p, view{notice: notice{generation: 1}})
	for _, c := range s.Conditions {
		if kept := c.LastTransitionTime.Equal(&long); kept != (c.Type == "Accepted") {
			t.Errorf("condition %s has turned at %s", c.Type, c.LastTransitionTime)
		}
	}
}

// kstatus is what Flux and Helm make of the object.
func kstatus(t *testing.T, p *v1alpha1.RateLimitPolicy) status.Status {
	t.Helper()
	u, err := runtime.DefaultUnstructuredConverter.ToUnstructured(p)
	if err != nil {
		t.Fatal(err)
	}
	result, err := status.Compute(&unstructured.Unstructured{Object: u})
	if err != nil {
		t.Fatal(err)
	}
	return result.Status
}
