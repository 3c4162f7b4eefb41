// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
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
				Enforcer: usage.Enforcer{Pod: name, Labels: map[string]string{"app": "checkout"}},
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
	stranger := enforcer("x", 1, time.Second)
	stranger.Labels = map[string]string{"app": "cart"}
	ahead := enforcer("a", 5, time.Second)
	ahead.Revision.Epoch = 2
	refusal := &policy.Refusal{Reason: v1alpha1.ReasonUnsupported}
	disabled := aPolicy(2, 10)
	disabled.Spec.Enforcement = v1alpha1.EnforcementDisabled

	for name, test := range map[string]struct {
		policy     *v1alpha1.RateLimitPolicy
		notice     notice
		reports    []usage.Observed
		storeErr   error
		reportsErr error
		want       []said
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
			p.Status = statusOf(p, view{
				notice:     test.notice,
				observed:   observe(test.reports),
				storeErr:   test.storeErr,
				reportsErr: test.reportsErr,
			})
			var got []said
			for _, c := range p.Status.Conditions {
				got = append(got, said{c.Type, string(c.Status), c.Reason})
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
