// SPDX-License-Identifier: Apache-2.0

package controller_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
	redisconfig "github.com/weir-dev/weir/internal/configstore/redis"
	"github.com/weir-dev/weir/internal/controller"
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
	// ended gives what the manager ended with.
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
	snapshots := controller.NewSnapshotReconciler(mgr.GetClient(), redisconfig.NewPublisher(w.redis, instance, logr.Discard()), board)
	status := controller.NewRateLimitPolicyReconciler(mgr.GetClient(), board, mgr.GetEventRecorder("weir-manager"))
	observer := controller.NewObserver(mgr.GetClient(), usage.NewReader(w.redis, instance), board)
	if err := errors.Join(snapshots.SetupWithManager(mgr), status.SetupWithManager(mgr), mgr.Add(observer)); err != nil {
		w.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(w.t.Context())
	w.ended = make(chan error, 1)
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.ended <- mgr.Start(ctx)
	}()
	w.t.Cleanup(func() {
		cancel()
		<-done
	})
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
