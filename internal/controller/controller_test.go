// SPDX-License-Identifier: Apache-2.0

package controller_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
	redisconfig "github.com/weir-dev/weir/internal/configstore/redis"
	"github.com/weir-dev/weir/internal/controller"
	"github.com/weir-dev/weir/internal/podcache"
	"github.com/weir-dev/weir/internal/redistest"
	"github.com/weir-dev/weir/internal/usage"
	"github.com/weir-dev/weir/test/controlplane"
)

const (
	instance = "test"
	patience = 30 * time.Second
)

var plane *controlplane.ControlPlane

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	os.Exit(controlplane.Main(m, &plane))
}

// world is a manager with a namespace and a Redis of its own.
type world struct {
	t *testing.T
	client.Client
	namespace string
	redis     *redis.Client
	publisher configstore.Publisher
	snapshots *controller.SnapshotReconciler
	detector  *controller.Detector
	// stop ends the manager, which gives to ended what it ended with.
	stop  func()
	ended chan error
}

// newWorld has a namespace with the Service checkout.
func newWorld(t *testing.T) *world {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	c, err := client.New(plane.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, Client: c, namespace: strings.ToLower(strings.NewReplacer("/", "-", "_", "-").Replace(t.Name()))}
	w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: w.namespace}})
	w.create(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "checkout"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "checkout"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	})
	w.redis = redistest.Start(t).Client(t)
	w.publisher = redisconfig.NewPublisher(w.redis, instance, logr.Discard())
	w.start(scheme)
	return w
}

// start runs a manager until the test ends.
func (w *world) start(scheme *runtime.Scheme) {
	w.t.Helper()
	anyName := true
	mgr, err := ctrl.NewManager(plane.Config, ctrl.Options{
		Scheme:     scheme,
		Logger:     logr.Discard(),
		Metrics:    metricsserver.Options{BindAddress: "0"},
		Controller: config.Controller{SkipNameValidation: &anyName},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	board := controller.NewBoard()
	recorder := mgr.GetEventRecorder("weir-manager")
	snapshots := controller.NewSnapshotReconciler(mgr.GetClient(), redisconfig.NewPublisher(w.redis, instance, logr.Discard()), board, recorder)
	w.snapshots = snapshots
	status := controller.NewRateLimitPolicyReconciler(mgr.GetClient(), board, recorder)
	pods, err := podcache.New(mgr)
	if err != nil {
		w.t.Fatal(err)
	}
	reports := usage.NewReader(w.redis, instance)
	observer := controller.NewObserver(mgr.GetClient(), pods, reports, board)
	w.detector = controller.NewDetector(mgr.GetClient(), pods, reports, board, recorder, "weir-system")
	if err := errors.Join(snapshots.SetupWithManager(mgr), status.SetupWithManager(mgr), mgr.Add(observer), mgr.Add(w.detector)); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	w.ended = make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.ended <- mgr.Start(ctx)
	}()
	w.stop = func() {
		cancel()
		<-done
	}
	w.t.Cleanup(w.stop)
}

func (w *world) create(o client.Object) {
	w.t.Helper()
	if err := w.Create(w.t.Context(), o); err != nil {
		w.t.Fatal(err)
	}
}

// createPolicy creates a policy on the Service checkout.
func (w *world) createPolicy(requests int64) *v1alpha1.RateLimitPolicy {
	w.t.Helper()
	p := &v1alpha1.RateLimitPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "a"},
		Spec: v1alpha1.RateLimitPolicySpec{
			TargetRefs: []v1alpha1.TargetRef{{Kind: "Service", Name: "checkout"}},
			Limits:     []v1alpha1.Limit{{Name: "all", Strategy: bucket(requests)}},
		},
	}
	w.create(p)
	return p
}

func bucket(requests int64) v1alpha1.Strategy {
	return v1alpha1.Strategy{TokenBucket: &v1alpha1.TokenBucket{Requests: v1alpha1.Requests(requests), Window: "1m"}}
}

// edit changes the policy as it is now.
func (w *world) edit(p *v1alpha1.RateLimitPolicy, change func(*v1alpha1.RateLimitPolicy)) {
	w.t.Helper()
	before := p.DeepCopy()
	change(p)
	if err := w.Patch(w.t.Context(), p, client.MergeFrom(before)); err != nil {
		w.t.Fatal(err)
	}
}

// await gives the policy as soon as it is as wanted.
func (w *world) await(p *v1alpha1.RateLimitPolicy, what string, wanted func(*v1alpha1.RateLimitPolicy) bool) *v1alpha1.RateLimitPolicy {
	w.t.Helper()
	got := &v1alpha1.RateLimitPolicy{}
	w.eventually(what, func() bool {
		return w.Get(w.t.Context(), client.ObjectKeyFromObject(p), got) == nil && got.Status.ObservedGeneration == p.Generation && wanted(got)
	})
	return got
}

func (w *world) eventually(what string, come func() bool) {
	w.t.Helper()
	for end := time.Now().Add(patience); !come(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			w.t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// stored is what the config store holds of the namespace.
func (w *world) stored() configstore.Snapshot {
	w.t.Helper()
	s, err := w.publisher.Load(w.t.Context(), w.namespace)
	if err != nil {
		w.t.Fatal(err)
	}
	return s[w.namespace]
}

func isReady(p *v1alpha1.RateLimitPolicy) bool {
	return meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionReady)
}

func TestOneAcceptedSpecIsKeptForEachPolicy(t *testing.T) {
	w := newWorld(t)
	p := w.createPolicy(10)
	w.await(p, "the policy is ready", isReady)
	for requests := int64(20); requests <= 30; requests += 10 {
		w.edit(p, func(p *v1alpha1.RateLimitPolicy) { p.Spec.Limits[0].Strategy = bucket(requests) })
		w.await(p, "the edit is ready", isReady)
	}
	var kept []appsv1.ControllerRevision
	w.eventually("the last accepted spec alone is kept", func() bool {
		var list appsv1.ControllerRevisionList
		if err := w.List(t.Context(), &list, client.InNamespace(w.namespace), client.HasLabels{controller.AcceptedLabel}); err != nil {
			t.Fatal(err)
		}
		kept = list.Items
		return len(kept) == 1 && kept[0].Revision == 3
	})
	if !metav1.IsControlledBy(&kept[0], p) {
		t.Errorf("ControllerRevision %s does not go with the policy", kept[0].Name)
	}
	var data struct {
		Spec v1alpha1.RateLimitPolicySpec `json:"spec"`
	}
	if err := json.Unmarshal(kept[0].Data.Raw, &data); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(p.Spec, data.Spec); diff != "" {
		t.Errorf("the kept spec (-policy +kept):\n%s", diff)
	}
}

func TestAPolicyIsWrittenOnlyWhenThereIsSomethingNewToTell(t *testing.T) {
	w := newWorld(t)
	settled := w.await(w.createPolicy(10), "the policy is ready", isReady)
	// Whatever could make the manager look again, and again find nothing new.
	w.edit(settled, func(p *v1alpha1.RateLimitPolicy) { p.Labels = map[string]string{"a": "b"} })
	version := settled.ResourceVersion
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		var now v1alpha1.RateLimitPolicy
		if err := w.Get(t.Context(), client.ObjectKeyFromObject(settled), &now); err != nil {
			t.Fatal(err)
		}
		if now.ResourceVersion != version {
			t.Fatalf("written again without need (-before +after):\n%s", cmp.Diff(settled, &now))
		}
	}
}

func TestWhatOthersKeepInTheStatusStaysTheirs(t *testing.T) {
	w := newWorld(t)
	p := w.createPolicy(10)
	w.await(p, "the policy is ready", isReady)
	foreign := &unstructured.Unstructured{Object: map[string]any{"status": map[string]any{"conditions": []any{map[string]any{
		"type": "example.com/Reviewed", "status": "True", "reason": "Seen", "message": "by somebody", "lastTransitionTime": "2026-01-01T00:00:00Z",
	}}}}}
	foreign.SetGroupVersionKind(v1alpha1.GroupVersion.WithKind("RateLimitPolicy"))
	foreign.SetNamespace(p.Namespace)
	foreign.SetName(p.Name)
	if err := w.Status().Apply(t.Context(), client.ApplyConfigurationFromUnstructured(foreign), client.FieldOwner("somebody")); err != nil {
		t.Fatal(err)
	}
	w.edit(p, func(p *v1alpha1.RateLimitPolicy) { p.Spec.Limits[0].Strategy = bucket(20) })
	got := w.await(p, "the edit is ready", isReady)
	if !meta.IsStatusConditionTrue(got.Status.Conditions, "example.com/Reviewed") {
		t.Errorf("the other's condition is gone: %+v", got.Status.Conditions)
	}
}

func TestAnEditOfTheServiceMovesTheLimitWithIt(t *testing.T) {
	w := newWorld(t)
	w.await(w.createPolicy(10), "the policy is ready", isReady)
	service := &corev1.Service{}
	if err := w.Get(t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "checkout"}, service); err != nil {
		t.Fatal(err)
	}
	service.Spec.Selector = map[string]string{"app": "other"}
	if err := w.Update(t.Context(), service); err != nil {
		t.Fatal(err)
	}
	w.eventually("the target follows", func() bool {
		s := w.stored()
		return len(s.Policies) == 1 && s.Policies[0].Targets[0].Pods.Selects(map[string]string{"app": "other"})
	})
}

func TestATargetThatGoesAwayIsToldAndStaysEnforced(t *testing.T) {
	w := newWorld(t)
	w.create(&corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "cart"},
		Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": "cart"}, Ports: []corev1.ServicePort{{Name: "http", Port: 80}}},
	})
	p := &v1alpha1.RateLimitPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "both"},
		Spec: v1alpha1.RateLimitPolicySpec{
			TargetRefs: []v1alpha1.TargetRef{{Kind: "Service", Name: "checkout"}, {Kind: "Service", Name: "cart"}},
			Limits:     []v1alpha1.Limit{{Name: "all", Strategy: bucket(10)}},
		},
	}
	w.create(p)
	w.await(p, "the policy is ready", isReady)
	if err := w.Delete(t.Context(), &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "cart"}}); err != nil {
		t.Fatal(err)
	}
	got := w.await(p, "the missing target is told", func(p *v1alpha1.RateLimitPolicy) bool {
		return meta.IsStatusConditionFalse(p.Status.Conditions, v1alpha1.ConditionAccepted)
	})
	told := map[string]string{}
	for _, target := range got.Status.Targets {
		told[target.Ref.Name] = target.Conditions[0].Reason
	}
	if diff := cmp.Diff(map[string]string{"checkout": v1alpha1.ReasonAccepted, "cart": v1alpha1.ReasonTargetNotFound}, told); diff != "" {
		t.Errorf("targets (-want +got):\n%s", diff)
	}
	var ids []string
	for _, target := range w.stored().Policies[0].Targets {
		ids = append(ids, target.ID)
	}
	// The pods of a Service that is gone may well be there still: it may just be being replaced.
	if !slices.Equal(ids, []string{"Service/checkout", "Service/cart"}) {
		t.Errorf("published targets are %v, want those that were accepted", ids)
	}
}

func TestALeaderThatIsDeposedPublishesNothingMoreAndEnds(t *testing.T) {
	w := newWorld(t)
	p := w.createPolicy(10)
	w.await(p, "the policy is ready", isReady)
	if _, err := w.publisher.Claim(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := w.stored()
	w.edit(p, func(p *v1alpha1.RateLimitPolicy) { p.Spec.Limits[0].Strategy = bucket(20) })
	select {
	case err := <-w.ended:
		if !errors.Is(err, configstore.ErrFenced) {
			t.Errorf("the manager ended with %v, want %v", err, configstore.ErrFenced)
		}
	case <-time.After(patience):
		t.Fatal("the manager of a deposed leader goes on")
	}
	if diff := cmp.Diff(before, w.stored()); diff != "" {
		t.Errorf("a deposed leader published (-before +after):\n%s", diff)
	}
}

func TestADeletedPolicyDoesNotComeBackWithAnOldStore(t *testing.T) {
	w := newWorld(t)
	p := w.createPolicy(10)
	w.await(p, "the policy is ready", isReady)
	key := "weir:test:{config}:" + w.namespace
	old, err := w.redis.Dump(t.Context(), key).Result()
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	w.eventually("that there are no policies is published", func() bool { return len(w.stored().Policies) == 0 })
	revision := w.stored().Revision
	// A replica that lagged behind, or an old dump, becomes the store.
	if err := w.redis.RestoreReplace(t.Context(), key, 0, old).Err(); err != nil {
		t.Fatal(err)
	}
	w.eventually("the empty snapshot is restored", func() bool { return w.stored().Revision == revision })
}

func TestWhatIsPublishedOutlivesAnEmptiedStoreWithoutKeptSpecs(t *testing.T) {
	w := newWorld(t)
	p := w.createPolicy(10)
	w.await(p, "the policy is ready", isReady)
	w.edit(p, func(p *v1alpha1.RateLimitPolicy) {
		p.Spec.Limits[0].Strategy = v1alpha1.Strategy{Adaptive: &v1alpha1.Adaptive{MinRequests: 1, MaxRequests: 2, Window: "1s"}}
	})
	w.await(p, "the edit is refused", func(p *v1alpha1.RateLimitPolicy) bool {
		return meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionStalled)
	})
	if err := w.DeleteAllOf(t.Context(), &appsv1.ControllerRevision{}, client.InNamespace(w.namespace)); err != nil {
		t.Fatal(err)
	}
	if err := w.redis.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	w.eventually("the last accepted limits are published again", func() bool {
		s := w.stored()
		return len(s.Policies) == 1 && s.Policies[0].Limits[0].Limit.Requests == 10
	})
}

func TestAKeptSpecThatSomebodyDeletesIsKeptAnew(t *testing.T) {
	w := newWorld(t)
	p := w.createPolicy(10)
	w.await(p, "the policy is ready", isReady)
	if err := w.DeleteAllOf(t.Context(), &appsv1.ControllerRevision{}, client.InNamespace(w.namespace)); err != nil {
		t.Fatal(err)
	}
	w.eventually("the spec is kept", func() bool {
		var list appsv1.ControllerRevisionList
		return w.List(t.Context(), &list, client.InNamespace(w.namespace)) == nil && len(list.Items) == 1
	})
}

func TestAPolicyWhoseSpecCannotBeKeptAffectsNoOther(t *testing.T) {
	w := newWorld(t)
	first := w.createPolicy(10)
	w.await(first, "the first policy is ready", isReady)
	one := corev1.ResourceList{"count/controllerrevisions.apps": resource.MustParse("1")}
	quota := &corev1.ResourceQuota{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "one-revision"},
		Spec:       corev1.ResourceQuotaSpec{Hard: one},
	}
	w.create(quota)
	// What the quota controller would do: there is none here.
	quota.Status = corev1.ResourceQuotaStatus{Hard: one, Used: one}
	if err := w.Status().Update(t.Context(), quota); err != nil {
		t.Fatal(err)
	}
	second := first.DeepCopy()
	second.ObjectMeta = metav1.ObjectMeta{Namespace: w.namespace, Name: strings.Repeat("b", 241) + ".c"}
	w.create(second)
	w.await(second, "the second says why it isn't published", func(p *v1alpha1.RateLimitPolicy) bool {
		c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionProgrammed)
		return c != nil && c.Reason == v1alpha1.ReasonPublishFailed && strings.Contains(c.Message, "ControllerRevision") &&
			meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionStoreReady)
	})
	w.edit(first, func(p *v1alpha1.RateLimitPolicy) { p.Labels = map[string]string{"a": "b"} })
	w.await(first, "the first is ready still", isReady)
}

func TestOneBadPolicyAffectsNoOther(t *testing.T) {
	w := newWorld(t)
	bad := &v1alpha1.RateLimitPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: "0-comes-first"},
		Spec: v1alpha1.RateLimitPolicySpec{
			Selector: &metav1.LabelSelector{},
			Limits:   []v1alpha1.Limit{{Name: "all", Strategy: v1alpha1.Strategy{Adaptive: &v1alpha1.Adaptive{MinRequests: 1, MaxRequests: 2, Window: "1s"}}}},
		},
	}
	w.create(bad)
	w.await(bad, "the bad policy is refused", func(p *v1alpha1.RateLimitPolicy) bool {
		return meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionStalled)
	})
	good := w.createPolicy(10)
	w.await(good, "the good policy is ready", isReady)
	w.edit(good, func(p *v1alpha1.RateLimitPolicy) { p.Spec.Limits[0].Strategy = bucket(20) })
	w.await(good, "the edit is ready", isReady)
	if s := w.stored(); len(s.Policies) != 1 || s.Policies[0].Limits[0].Limit.Requests != 20 {
		t.Errorf("published %+v, want the good policy alone", s.Policies)
	}
}

func TestAPolicyOfALongNameIsKept(t *testing.T) {
	w := newWorld(t)
	p := &v1alpha1.RateLimitPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: strings.Repeat("b", 241) + "." + strings.Repeat("c", 11)},
		Spec: v1alpha1.RateLimitPolicySpec{
			Selector: &metav1.LabelSelector{},
			Limits:   []v1alpha1.Limit{{Name: "all", Strategy: bucket(10)}},
		},
	}
	w.create(p)
	w.await(p, "the policy is ready", isReady)
}

func TestAKeyOfAnotherKindIsReplaced(t *testing.T) {
	w := newWorld(t)
	w.await(w.createPolicy(10), "the policy is ready", isReady)
	for _, key := range []string{"weir:test:{config}:" + w.namespace, "weir:test:{report/" + w.namespace + "}"} {
		if err := w.redis.Set(t.Context(), key, "something else", 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	w.eventually("a snapshot is published in its place", func() bool { return len(w.stored().Policies) == 1 })
}

func TestGarbageInTheStoreIsReplaced(t *testing.T) {
	w := newWorld(t)
	p := w.createPolicy(10)
	w.await(p, "the policy is ready", isReady)
	revision := w.stored().Revision
	if err := w.redis.HSet(t.Context(), "weir:test:{config}:"+w.namespace, "number", revision.Number+1, "body", "{").Err(); err != nil {
		t.Fatal(err)
	}
	w.eventually("a good snapshot is published after the garbage", func() bool {
		s := w.stored()
		return len(s.Policies) == 1 && s.Revision.Compare(revision) > 0
	})
}

// runPod has a pod of the Service checkout run, as far as the API server is told.
func (w *world) runPod(name string, labels map[string]string) *corev1.Pod {
	w.t.Helper()
	labels = maps.Clone(labels)
	labels["app"] = "checkout"
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: name, Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "example.invalid/app"}}},
	}
	w.create(pod)
	w.setPhase(pod, corev1.PodRunning)
	return pod
}

func (w *world) setPhase(pod *corev1.Pod, phase corev1.PodPhase) {
	w.t.Helper()
	pod.Status.Phase = phase
	if err := w.Status().Update(w.t.Context(), pod); err != nil {
		w.t.Fatal(err)
	}
}

// report has a pod's sidecar report until the returned function is called, or the test ends.
func (w *world) report(pod *corev1.Pod, ports map[string]int32) (stop func()) {
	return w.reportOf(pod, func(r *usage.Report) { r.Ports = ports })
}

// reportOf is report for one that says more.
func (w *world) reportOf(pod *corev1.Pod, more func(*usage.Report)) (stop func()) {
	enforcer := usage.Enforcer{Pod: pod.Name, UID: string(pod.UID), Nonce: "1", Labels: pod.Labels}
	reporter := usage.NewReporter(w.redis, instance, w.namespace, func(time.Time) usage.Report {
		revisions, _ := w.publisher.Revisions(w.t.Context(), w.namespace) // None at the end of the test.
		r := usage.Report{Enforcer: enforcer, Revision: revisions[w.namespace]}
		more(&r)
		return r
	}, logr.Discard())
	ctx, cancel := context.WithCancel(w.t.Context())
	var group sync.WaitGroup
	group.Go(func() { _ = reporter.Run(ctx) })
	stop = func() {
		cancel()
		group.Wait()
	}
	w.t.Cleanup(stop)
	return stop
}

// enforcedIs says whether Enforced has a reason, with so many enforcers.
func enforcedIs(reason string, current, expected int32) func(*v1alpha1.RateLimitPolicy) bool {
	return func(p *v1alpha1.RateLimitPolicy) bool {
		c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionEnforced)
		return c != nil && c.Reason == reason && *p.Status.Enforcers == v1alpha1.Enforcers{Expected: expected, Current: current}
	}
}

func TestEnforcersAreThePodsThatRunWithTheSidecar(t *testing.T) {
	w := newWorld(t)
	w.lead(intstr.FromString("http"))
	injected := map[string]string{v1alpha1.LabelInjected: "true"}
	p := w.createPolicy(10)
	w.await(p, "nobody enforces", enforcedIs(v1alpha1.ReasonNoEnforcers, 0, 0))

	a, b := w.runPod("a", injected), w.runPod("b", injected)
	w.report(a, map[string]int32{"http": 8080})
	w.await(p, "pod b is missed", enforcedIs(v1alpha1.ReasonNotReporting, 1, 2))
	w.report(b, nil)
	w.await(p, "both enforce", enforcedIs(v1alpha1.ReasonEnforced, 2, 2))
	w.setPhase(b, corev1.PodSucceeded)
	w.await(p, "a pod that has ended is none, whatever is left of it", enforcedIs(v1alpha1.ReasonEnforced, 1, 1))

	w.lead(intstr.FromInt32(8080))
	w.await(p, "the Service leads past the sidecar", enforcedIs(v1alpha1.ReasonNotIntercepted, 1, 1))
	w.lead(intstr.FromString("http"))
	w.await(p, "the Service leads to the sidecar", enforcedIs(v1alpha1.ReasonEnforced, 1, 1))
}

func TestAFloodOfKeysIsToldFromItsStartToItsEnd(t *testing.T) {
	w := newWorld(t)
	w.lead(intstr.FromString("http"))
	p := w.createPolicy(10)
	pod := w.runPod("a", map[string]string{v1alpha1.LabelInjected: "true"})
	var overflowed atomic.Int64
	w.reportOf(pod, func(r *usage.Report) {
		r.Limits = []usage.Limit{{Namespace: w.namespace, Policy: p.Name, Limit: "all", Counts: usage.Counts{Allowed: 1, Overflowed: overflowed.Load()}}}
	})
	w.await(p, "the limits are enforced", enforcedIs(v1alpha1.ReasonEnforced, 1, 1))
	overflowed.Store(1)
	w.await(p, "the flood is told, and the policy is ready", func(p *v1alpha1.RateLimitPolicy) bool {
		return enforcedIs(v1alpha1.ReasonTooManyKeys, 1, 1)(p) && isReady(p)
	})
	overflowed.Store(0)
	w.await(p, "its end is told", enforcedIs(v1alpha1.ReasonEnforced, 1, 1))
	w.eventually("an event tells that it began", func() bool {
		var list eventsv1.EventList
		if err := w.List(t.Context(), &list, client.InNamespace(w.namespace)); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list.Items, func(e eventsv1.Event) bool {
			return e.Regarding.Name == p.Name && e.Reason == v1alpha1.ReasonTooManyKeys && e.Type == corev1.EventTypeWarning
		})
	})
}

func TestAPodThatLacksItsSidecarIsTold(t *testing.T) {
	w := newWorld(t)
	p := w.createPolicy(10)
	w.await(p, "the policy is ready", isReady)
	pod := w.runPod("a", map[string]string{v1alpha1.LabelInject: v1alpha1.InjectEnabled})
	created := time.Now()
	w.await(p, "its policy says so", enforcedIs(v1alpha1.ReasonNotIntercepted, 0, 0))
	t.Logf("told %s after the pod began to run", time.Since(created).Round(time.Millisecond))

	w.eventually("an event of the pod says so", func() bool {
		var list eventsv1.EventList
		if err := w.List(t.Context(), &list, client.InNamespace(w.namespace)); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list.Items, func(e eventsv1.Event) bool { return e.Regarding.UID == pod.UID && e.Reason == "NotInjected" })
	})
	want := `
# HELP weir_pods_without_sidecar Number of pods that were to have the sidecar and run without it, by the reason that the injector gave; NotInjected where it was not asked.
# TYPE weir_pods_without_sidecar gauge
weir_pods_without_sidecar{namespace="` + w.namespace + `",reason="NotInjected"} 1
`
	if err := testutil.CollectAndCompare(w.detector, strings.NewReader(want)); err != nil {
		t.Error(err)
	}
	if err := w.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	w.await(p, "a pod that is gone is forgotten", enforcedIs(v1alpha1.ReasonNoEnforcers, 0, 0))
}

// lead has the Service checkout lead to a port of its pods.
func (w *world) lead(target intstr.IntOrString) {
	w.t.Helper()
	service := &corev1.Service{}
	if err := w.Get(w.t.Context(), client.ObjectKey{Namespace: w.namespace, Name: "checkout"}, service); err != nil {
		w.t.Fatal(err)
	}
	service.Spec.Ports[0].TargetPort = target
	if err := w.Update(w.t.Context(), service); err != nil {
		w.t.Fatal(err)
	}
}

// mark changes the world's namespace.
func (w *world) mark(change func(*corev1.Namespace)) {
	w.t.Helper()
	ns := &corev1.Namespace{}
	if err := w.Get(w.t.Context(), client.ObjectKey{Name: w.namespace}, ns); err != nil {
		w.t.Fatal(err)
	}
	before := ns.DeepCopy()
	change(ns)
	if err := w.Patch(w.t.Context(), ns, client.MergeFrom(before)); err != nil {
		w.t.Fatal(err)
	}
}

func TestSidecarsOfANamespaceWithoutPoliciesFindThatThereAreNone(t *testing.T) {
	w := newWorld(t)
	w.mark(func(ns *corev1.Namespace) {
		metav1.SetMetaDataLabel(&ns.ObjectMeta, v1alpha1.LabelInject, v1alpha1.InjectEnabled)
	})
	w.eventually("that there are no policies is published", func() bool { return w.stored().Revision.Number == 1 })
	first := w.stored()
	if first.Policies == nil || len(first.Policies) > 0 {
		t.Errorf("published policies are %v, want an empty list", first.Policies)
	}
	if err := w.redis.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	w.eventually("it is restored", func() bool { return w.stored().Revision == first.Revision })

	w.mark(func(ns *corev1.Namespace) { delete(ns.Labels, v1alpha1.LabelInject) })
	w.await(w.createPolicy(10), "a policy comes after it, although the namespace has left", isReady)
	if got := w.stored().Revision; got.Compare(first.Revision) <= 0 {
		t.Errorf("the next revision is %v, which does not come after %v", got, first.Revision)
	}
}

func TestMostPoliciesDoNotVanishAtOnceUnlessThatIsConfirmed(t *testing.T) {
	w := newWorld(t)
	// More than there are of other tests, which this manager publishes too.
	var others v1alpha1.RateLimitPolicyList
	if err := w.List(t.Context(), &others); err != nil {
		t.Fatal(err)
	}
	policies := len(others.Items) + 11
	for i := range policies {
		w.create(&v1alpha1.RateLimitPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: w.namespace, Name: fmt.Sprintf("p%d", i)},
			Spec: v1alpha1.RateLimitPolicySpec{
				Selector: &metav1.LabelSelector{}, Limits: []v1alpha1.Limit{{Name: "all", Strategy: bucket(10)}},
			},
		})
	}
	w.eventually("all are published", func() bool { return len(w.stored().Policies) == policies })
	before := w.stored()
	// To the next leader they are gone in one step, however long it takes.
	w.stop()
	if err := w.DeleteAllOf(t.Context(), &v1alpha1.RateLimitPolicy{}, client.InNamespace(w.namespace)); err != nil {
		t.Fatal(err)
	}
	w.start(w.Scheme())
	withheld := `
# HELP weir_withheld_removals Number of policies that are gone, but stay enforced until their removal is confirmed.
# TYPE weir_withheld_removals gauge
weir_withheld_removals{namespace="` + w.namespace + `"} ` + strconv.Itoa(policies) + `
`
	w.eventually("the removal is withheld", func() bool {
		return testutil.CollectAndCompare(w.snapshots.Metrics(), strings.NewReader(withheld)) == nil
	})
	if diff := cmp.Diff(before, w.stored()); diff != "" {
		t.Errorf("what is published (-before +after):\n%s", diff)
	}
	w.eventually("an event of the namespace says so", func() bool {
		var list eventsv1.EventList
		if err := w.List(t.Context(), &list, client.InNamespace("default")); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list.Items, func(e eventsv1.Event) bool {
			return e.Regarding.Name == w.namespace && e.Reason == "RemovalWithheld"
		})
	})
	w.mark(func(ns *corev1.Namespace) {
		metav1.SetMetaDataAnnotation(&ns.ObjectMeta, v1alpha1.AnnotationConfirmRemoval, "true")
	})
	w.eventually("a confirmed removal is published", func() bool { s := w.stored(); return s.Policies != nil && len(s.Policies) == 0 })
	if n := testutil.CollectAndCount(w.snapshots.Metrics()); n > 0 {
		t.Errorf("%d namespaces are still said to have withheld removals", n)
	}
}
