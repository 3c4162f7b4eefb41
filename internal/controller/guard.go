// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/configstore"
)

const (
	// mostAtOnce is how many policies may always go in one step. An installation that is tried out, or one
	// application of many, is taken down without a question.
	mostAtOnce = 10
	// settling is how long a removal waits for others that are part of the same step. What is listed anew comes to
	// us object by object.
	settling = 300 * time.Millisecond
	// peakWindow is for how long the number of policies is remembered that a step is measured by.
	peakWindow = time.Minute
	// reconsider is how often a withheld removal is looked at again, in case that others were confirmed.
	reconsider = 10 * time.Second
)

var withheldDesc = prometheus.NewDesc("weir_withheld_removals",
	"Number of policies that are gone, but stay enforced until their removal is confirmed.", []string{"namespace"}, nil)

// guard withholds the removal of most policies in one step: a list that comes back empty, or a CRD that was deleted and
// created again, is more likely than that. It is safe for concurrent use.
type guard struct {
	client client.Reader
	memory *memory
	events events.EventRecorder

	mu sync.Mutex
	// pending is since when each namespace has had removals that wait for the rest of their step.
	pending map[string]time.Time
	// withheld are the numbers of removals, by namespace.
	withheld map[string]int
	// peak is the most policies that there were lately.
	peak   int
	peakAt time.Time
}

func newGuard(c client.Reader, m *memory, recorder events.EventRecorder) *guard {
	return &guard{client: c, memory: m, events: recorder, pending: map[string]time.Time{}, withheld: map[string]int{}}
}

// review gives those policies of a published snapshot that are gone, but must stay, and when to ask again.
func (g *guard) review(ctx context.Context, base configstore.Snapshot, policies []v1alpha1.RateLimitPolicy, now time.Time) (stay []configstore.Policy, again time.Duration, err error) {
	gone := slices.DeleteFunc(slices.Clone(base.Policies), func(p configstore.Policy) bool {
		return slices.ContainsFunc(policies, func(o v1alpha1.RateLimitPolicy) bool { return o.Name == p.Name })
	})
	if len(gone) == 0 {
		g.settle(base.Namespace)
		return nil, 0, nil
	}
	confirmed, err := g.confirmed(ctx, base.Namespace)
	if err != nil {
		return nil, 0, err
	}
	if confirmed {
		g.settle(base.Namespace)
		return nil, 0, nil
	}
	if wait := g.wait(base.Namespace, now); wait > 0 {
		return gone, wait, nil
	}
	missing, published, err := g.step(ctx)
	if err != nil {
		return nil, 0, err
	}
	if g.lets(missing, published, now) {
		g.settle(base.Namespace)
		return nil, 0, nil
	}
	g.withhold(ctx, base.Namespace, len(gone))
	return gone, reconsider, nil
}

// settle says that a namespace has no removals that wait, or are withheld, any more.
func (g *guard) settle(namespace string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.pending, namespace)
	delete(g.withheld, namespace)
}

// confirmed says whether the policies of a namespace may go whatever their number. Those of one that is itself about
// to go may.
func (g *guard) confirmed(ctx context.Context, name string) (bool, error) {
	namespace, err := namespaceNamed(ctx, g.client, name)
	if err != nil {
		return false, err
	}
	return namespace == nil || !namespace.DeletionTimestamp.IsZero() || namespace.Annotations[v1alpha1.AnnotationConfirmRemoval] == "true", nil
}

// wait gives how long a namespace's removals have to wait for the rest of their step.
func (g *guard) wait(namespace string, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	since, ok := g.pending[namespace]
	if !ok {
		since = now
		g.pending[namespace] = now
	}
	return settling - now.Sub(since)
}

// step counts the policies that are published, and those of them that are gone without a confirmation.
func (g *guard) step(ctx context.Context) (missing, published int, err error) {
	var list v1alpha1.RateLimitPolicyList
	if err := g.client.List(ctx, &list, client.UnsafeDisableDeepCopy); err != nil {
		return 0, 0, fmt.Errorf("listing policies: %w", err)
	}
	there := make(map[types.NamespacedName]bool, len(list.Items))
	for i := range list.Items {
		p := &list.Items[i]
		there[client.ObjectKeyFromObject(p)] = p.DeletionTimestamp.IsZero()
	}
	for namespace, s := range g.memory.all() {
		gone := 0
		for i := range s.Policies {
			if !there[types.NamespacedName{Namespace: namespace, Name: s.Policies[i].Name}] {
				gone++
			}
		}
		published += len(s.Policies)
		if gone == 0 {
			continue
		}
		confirmed, err := g.confirmed(ctx, namespace)
		if err != nil {
			return 0, 0, err
		}
		if !confirmed {
			missing += gone
		}
	}
	return missing, published, nil
}

// lets says whether so many may go in one step.
func (g *guard) lets(missing, published int, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if published >= g.peak || now.Sub(g.peakAt) > peakWindow {
		g.peak, g.peakAt = published, now
	}
	return missing <= mostAtOnce || 2*missing <= g.peak
}

// withhold notes that removals are withheld, and tells of it once.
func (g *guard) withhold(ctx context.Context, namespace string, removals int) {
	g.mu.Lock()
	told := g.withheld[namespace] > 0
	g.withheld[namespace] = removals
	g.mu.Unlock()
	if told {
		return
	}
	log.FromContext(ctx).Info("removal withheld: most policies are gone at once", "policies", removals, "confirmWith", v1alpha1.AnnotationConfirmRemoval)
	ref := &corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: namespace}
	g.events.Eventf(ref, nil, corev1.EventTypeWarning, "RemovalWithheld", "Publish",
		"Most policies of the cluster are gone at once: %s of this namespace enforced until they are back, or annotation %s is \"true\"",
		stay(removals), v1alpha1.AnnotationConfirmRemoval)
}

// stay is like "1 policy stays" and "2 policies stay".
func stay(n int) string {
	if n == 1 {
		return "1 policy stays"
	}
	return fmt.Sprintf("%d policies stay", n)
}

// Describe implements prometheus.Collector.
func (g *guard) Describe(descs chan<- *prometheus.Desc) { descs <- withheldDesc }

// Collect implements prometheus.Collector.
func (g *guard) Collect(metrics chan<- prometheus.Metric) {
	g.mu.Lock()
	withheld := maps.Clone(g.withheld)
	g.mu.Unlock()
	for namespace, n := range withheld {
		metrics <- prometheus.MustNewConstMetric(withheldDesc, prometheus.GaugeValue, float64(n), namespace)
	}
}

// namespaceNamed gives the metadata of a namespace, or nil where there is none.
func namespaceNamed(ctx context.Context, c client.Reader, name string) (*metav1.PartialObjectMetadata, error) {
	meta := &metav1.PartialObjectMetadata{}
	meta.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	switch err := c.Get(ctx, types.NamespacedName{Name: name}, meta); {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("looking up namespace %s: %w", name, err)
	}
	return meta, nil
}
