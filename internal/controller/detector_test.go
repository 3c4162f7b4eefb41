// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/inject"
	"github.com/weir-dev/weir/internal/podcache"
	"github.com/weir-dev/weir/internal/usage"
)

// reported is a reader of reports that don't change.
type reported map[string][]usage.Observed

func (r reported) Read(_ context.Context, namespaces ...string) (map[string][]usage.Observed, error) {
	found := map[string][]usage.Observed{}
	for _, n := range namespaces {
		found[n] = r[n]
	}
	return found, nil
}

func (reported) Check(context.Context) error { return nil }

func TestDetectorFindsWhoLacksASidecar(t *testing.T) {
	inShop := map[string]inject.Namespace{
		"shop":   {Name: "shop", Labels: map[string]string{v1alpha1.LabelInject: v1alpha1.InjectEnabled}},
		"other":  {Name: "other"},
		"closed": {Name: "closed", Labels: map[string]string{v1alpha1.LabelInject: v1alpha1.InjectDisabled}},
	}
	handmade := reported{"shop": {{Report: usage.Report{Enforcer: usage.Enforcer{Pod: "a", UID: "uid"}}}}}
	const unasked = "has no sidecar: it was created while no manager answered, or before it was to have one. Restart its workload"
	enabled := map[string]string{v1alpha1.LabelInject: v1alpha1.InjectEnabled}
	for name, test := range map[string]struct {
		namespace   string
		labels      map[string]string
		annotations map[string]string
		deleted     bool
		age         time.Duration
		reports     reported
		want        map[string][]bare
	}{
		"a pod of a labeled namespace": {
			namespace: "shop", age: time.Minute,
			want: map[string][]bare{"shop": {{uid: "uid", namespace: "shop", name: "a", reason: "NotInjected", why: unasked}}},
		},
		"a labeled pod elsewhere": {
			namespace: "other", labels: enabled, age: time.Minute,
			want: map[string][]bare{"shop": nil, "other": {{uid: "uid", namespace: "other", name: "a", labels: enabled, reason: "NotInjected", why: unasked}}},
		},
		"one that can't have a sidecar is told with the injector's words": {
			namespace: "shop", age: time.Minute, annotations: map[string]string{v1alpha1.AnnotationNotInjected: "HostNetwork: do without"},
			want: map[string][]bare{"shop": {{uid: "uid", namespace: "shop", name: "a", reason: "HostNetwork", why: "has no sidecar (HostNetwork: do without)"}}},
		},
		"an annotation of somebody else's makes no reason": {
			namespace: "shop", age: time.Minute, annotations: map[string]string{v1alpha1.AnnotationNotInjected: "because"},
			want: map[string][]bare{"shop": {{uid: "uid", namespace: "shop", name: "a", reason: "NotInjected", why: unasked}}},
		},
		"one that has just come is given time":                            {namespace: "shop", want: map[string][]bare{"shop": nil}},
		"one whose author has put a sidecar there reports":                {namespace: "shop", age: time.Minute, reports: handmade, want: map[string][]bare{"shop": {}}},
		"one that is about to end needs none":                             {namespace: "shop", age: time.Minute, deleted: true, want: map[string][]bare{"shop": nil}},
		"one of a node's own files is admitted unseen":                    {namespace: "shop", age: time.Minute, annotations: map[string]string{podcache.MirrorAnnotation: "x"}, want: map[string][]bare{"shop": nil}},
		"one that doesn't ask for a sidecar":                              {namespace: "other", age: time.Minute, want: map[string][]bare{"shop": nil}},
		"one that opts out":                                               {namespace: "shop", age: time.Minute, labels: map[string]string{v1alpha1.LabelInject: v1alpha1.InjectDisabled}, want: map[string][]bare{"shop": nil}},
		"one whose namespace has the last word":                           {namespace: "closed", age: time.Minute, labels: enabled, want: map[string][]bare{"shop": nil}},
		"one of a namespace that is exempt, as kube-system always is":     {namespace: "kube-system", age: time.Minute, labels: enabled, want: map[string][]bare{"shop": nil}},
		"one that went while it was looked at is not looked for any more": {namespace: "gone", age: time.Minute, want: map[string][]bare{"shop": nil}},
	} {
		t.Run(name, func(t *testing.T) {
			pod := metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{
				Namespace: test.namespace, Name: "a", UID: "uid", Labels: test.labels, Annotations: test.annotations,
			}}
			now := time.Now()
			if test.deleted {
				pod.DeletionTimestamp = &metav1.Time{Time: now}
			}
			d := NewDetector(nil, nil, test.reports, NewBoard(), nil, "weir-system")
			d.since["uid"] = now.Add(-test.age)
			got := d.lacking(t.Context(), inShop, []metav1.PartialObjectMetadata{pod}, now)
			if diff := cmp.Diff(test.want, got, cmp.AllowUnexported(bare{})); diff != "" {
				t.Errorf("pods (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDetectorTellsOfEachPodOnce(t *testing.T) {
	const pods = mostEvents + 10
	recorder := events.NewFakeRecorder(10 * pods)
	d := NewDetector(nil, nil, nil, NewBoard(), recorder, "weir-system")
	found := map[string][]bare{"shop": {{uid: "unfit", namespace: "shop", name: "unfit", reason: inject.ReasonHostNetwork}}}
	for i := range pods {
		found["shop"] = append(found["shop"], bare{uid: types.UID(fmt.Sprint(i)), namespace: "shop", name: fmt.Sprint(i), reason: reasonNotInjected, why: fmt.Sprint("is ", i)})
	}
	var told []int
	for range 4 {
		d.tell(found)
		told = append(told, len(recorder.Events))
	}
	if want := []int{mostEvents, pods, pods, pods}; !slices.Equal(told, want) {
		t.Errorf("events after each look: %v, want %v", told, want)
	}
	if got, want := <-recorder.Events, "Warning NotInjected The pod is 0"; got != want {
		t.Errorf("the event is %q, want %q", got, want)
	}
	delete(found, "shop")
	d.tell(found)
	if len(d.told) > 0 {
		t.Errorf("%d pods that are gone are remembered", len(d.told))
	}
}
