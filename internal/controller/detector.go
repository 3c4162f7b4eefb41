// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/events"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/inject"
	"github.com/weir-dev/weir/internal/podcache"
)

const (
	// detectInterval is how often pods are looked at for their sidecars.
	detectInterval = 5 * time.Second
	// detectGrace is how long a pod may be without a sidecar before that is told: one that somebody has put there
	// by hand shows with its first report. With the interval it makes half of the 30 s that are promised.
	detectGrace = 10 * time.Second
	// mostEvents bounds the events of one look. When thousands of pods are found at once the rest has its turn with
	// the next looks.
	mostEvents = 50
)

// reasonNotInjected is that of the event, and of the metric for pods that nobody has said anything about.
const reasonNotInjected = "NotInjected"

var withoutSidecarDesc = prometheus.NewDesc("weir_pods_without_sidecar",
	"Number of pods that were to have the sidecar and run without it, by the reason that the injector gave; NotInjected where it was not asked.",
	[]string{"namespace", "reason"}, nil)

// bare is a pod that was to have the sidecar, and has none.
type bare struct {
	uid       types.UID
	namespace string
	name      string
	labels    map[string]string
	// reason is one of the injector's, or NotInjected.
	reason string
	// why is the reason and what to do about it, as a sentence that follows the pod's name.
	why string
}

// others lists the pods without the sidecar.
type others interface {
	Others(ctx context.Context, namespace string) ([]metav1.PartialObjectMetadata, error)
}

// Detector finds the pods that were to have the sidecar and have none: those that the API server admitted while no
// manager answered, and those that the injector had to leave as they are. It puts them on the [Board], counts them
// in a metric, and tells of the former in an event of each pod. It runs on the leader only.
type Detector struct {
	client  client.Reader
	pods    others
	reports reader
	board   *Board
	events  events.EventRecorder
	// exempt are the namespaces in which no pod is injected.
	exempt []string
	// since is when each pod without a sidecar was first seen, and told those that had their event.
	since map[types.UID]time.Time
	told  map[types.UID]bool

	mu    sync.Mutex
	found map[string][]bare // by namespace; an entry, empty or not, for each that asks for sidecars
}

// NewDetector gives a detector that tells recorder. The manager's own namespace is exempt, as kube-system is.
func NewDetector(c client.Reader, pods others, reports reader, board *Board, recorder events.EventRecorder, ownNamespace string) *Detector {
	return &Detector{
		client: c, pods: pods, reports: reports, board: board, events: recorder,
		exempt: []string{metav1.NamespaceSystem, ownNamespace},
		since:  map[types.UID]time.Time{}, told: map[types.UID]bool{},
	}
}

// Start looks at all pods every 5 seconds until ctx is done.
func (d *Detector) Start(ctx context.Context) error {
	tick := time.NewTicker(detectInterval)
	defer tick.Stop()
	failing := false
	for {
		err := d.look(ctx, time.Now())
		if err != nil && !failing && ctx.Err() == nil {
			log.FromContext(ctx).Error(err, "pods without a sidecar are not looked for")
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// look finds who lacks a sidecar, and tells.
func (d *Detector) look(ctx context.Context, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, detectInterval)
	defer cancel()
	namespaces, err := d.namespaces(ctx)
	if err != nil {
		return err
	}
	pods, err := d.pods.Others(ctx, metav1.NamespaceAll)
	if err != nil {
		return err
	}
	found := d.lacking(ctx, namespaces, pods, now)
	d.tell(found)
	d.mu.Lock()
	d.found = found
	d.mu.Unlock()
	d.board.lack(found)
	return nil
}

// namespaces gives those in which pods can be injected.
func (d *Detector) namespaces(ctx context.Context) (map[string]inject.Namespace, error) {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("NamespaceList"))
	if err := d.client.List(ctx, list, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("listing namespaces: %w", err)
	}
	namespaces := make(map[string]inject.Namespace, len(list.Items))
	for i := range list.Items {
		if ns := &list.Items[i]; !slices.Contains(d.exempt, ns.Name) {
			namespaces[ns.Name] = inject.Namespace{Name: ns.Name, Labels: ns.Labels}
		}
	}
	return namespaces, nil
}

// lacking gives the pods that have been without a sidecar for longer than the grace, by namespace and name.
func (d *Detector) lacking(ctx context.Context, namespaces map[string]inject.Namespace, pods []metav1.PartialObjectMetadata, now time.Time) map[string][]bare {
	found := map[string][]bare{}
	for name, ns := range namespaces {
		if ns.Labels[v1alpha1.LabelInject] == v1alpha1.InjectEnabled {
			found[name] = nil
		}
	}
	since := map[types.UID]time.Time{}
	for i := range pods {
		pod := &pods[i]
		if ns, ok := namespaces[pod.Namespace]; !ok || !lacks(pod, ns) {
			continue
		}
		since[pod.UID] = now
		if first, seen := d.since[pod.UID]; seen {
			since[pod.UID] = first
		}
		if now.Sub(since[pod.UID]) >= detectGrace {
			found[pod.Namespace] = append(found[pod.Namespace], bareOf(pod))
		}
	}
	d.since = since
	d.leaveOutReporting(ctx, found)
	for _, all := range found {
		slices.SortFunc(all, func(a, b bare) int { return cmp.Compare(a.name, b.name) })
	}
	return found
}

// lacks says whether a pod, which has not been injected, was to be.
func lacks(pod *metav1.PartialObjectMetadata, ns inject.Namespace) bool {
	_, mirror := pod.Annotations[podcache.MirrorAnnotation]
	return !mirror && pod.DeletionTimestamp.IsZero() && inject.Wanted(pod.Labels, ns)
}

func bareOf(pod *metav1.PartialObjectMetadata) bare {
	b := bare{uid: pod.UID, namespace: pod.Namespace, name: pod.Name, labels: pod.Labels}
	said := pod.Annotations[v1alpha1.AnnotationNotInjected]
	if b.reason = inject.ReasonIn(said); b.reason != "" {
		b.why = "has no sidecar (" + said + ")"
		return b
	}
	b.reason = reasonNotInjected
	b.why = "has no sidecar: it was created while no manager answered, or before it was to have one. Restart its workload"
	return b
}

// leaveOutReporting leaves out the pods whose authors have put a sidecar there themselves: they report. While the store
// is away there is no telling.
func (d *Detector) leaveOutReporting(ctx context.Context, found map[string][]bare) {
	var namespaces []string
	for name, all := range found {
		if len(all) > 0 {
			namespaces = append(namespaces, name)
		}
	}
	reports, err := d.reports.Read(ctx, namespaces...)
	if err != nil {
		return // The Observer tells of it.
	}
	for name, observed := range reports {
		found[name] = slices.DeleteFunc(found[name], func(b bare) bool {
			_, reports := latestRuns(observed)[string(b.uid)]
			return reports
		})
	}
}

// tell emits an event for each pod that the injector was not asked about. What it says by itself, it has told.
func (d *Detector) tell(found map[string][]bare) {
	told, left := map[types.UID]bool{}, mostEvents
	for _, namespace := range slices.Sorted(maps.Keys(found)) {
		for _, b := range found[namespace] {
			switch {
			case b.reason != reasonNotInjected:
				continue
			case !d.told[b.uid] && left == 0:
				continue
			case !d.told[b.uid]:
				left--
				ref := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: b.namespace, Name: b.name, UID: b.uid}
				d.events.Eventf(ref, nil, corev1.EventTypeWarning, reasonNotInjected, "Inject", "The pod %s", b.why)
			}
			told[b.uid] = true
		}
	}
	d.told = told
}

// Describe implements prometheus.Collector.
func (d *Detector) Describe(descs chan<- *prometheus.Desc) { descs <- withoutSidecarDesc }

// Collect implements prometheus.Collector. A namespace that asks for sidecars has the reason NotInjected at any time,
// others, and other reasons, while there is such a pod.
func (d *Detector) Collect(metrics chan<- prometheus.Metric) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for namespace, all := range d.found {
		counts := map[string]float64{reasonNotInjected: 0}
		for _, b := range all {
			counts[b.reason]++
		}
		for reason, n := range counts {
			metrics <- prometheus.MustNewConstMetric(withoutSidecarDesc, prometheus.GaugeValue, n, namespace, reason)
		}
	}
}

// digest changes when another status is to be told because of these pods.
func digest(pods []bare) string {
	lines := make([]string, len(pods))
	for i, b := range pods {
		lines[i] = fmt.Sprint(b.name, b.labels, b.why)
	}
	return strings.Join(lines, "\n")
}
