// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/events"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/inject"
)

// podPath is where the API server asks about pods.
const podPath = "/inject-v1-pod"

// PodWebhook puts the sidecar into pods. It never refuses one.
type PodWebhook struct {
	cached, live client.Reader
	settings     inject.Settings
	events       events.EventRecorder
	decoder      admission.Decoder
}

// SetupPodWebhook has the manager's webhook server put sidecars of these settings into pods. What comes of it that
// the pod's author has to know is told to recorder, about the pod's owner.
func SetupPodWebhook(mgr ctrl.Manager, settings inject.Settings, recorder events.EventRecorder) {
	mgr.GetWebhookServer().Register(podPath, &webhook.Admission{Handler: &PodWebhook{
		cached: mgr.GetClient(), live: mgr.GetAPIReader(),
		settings: settings, events: recorder, decoder: admission.NewDecoder(mgr.GetScheme()),
	}})
}

// Handle implements [admission.Handler].
func (w *PodWebhook) Handle(ctx context.Context, req admission.Request) admission.Response {
	pod := &corev1.Pod{}
	if err := w.decoder.Decode(req, pod); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("decoding the pod: %w", err))
	}
	ns, err := w.namespace(ctx, req.Namespace)
	if err != nil {
		// What becomes of the pod is for the failurePolicy to say.
		log.FromContext(ctx).Error(err, "a pod gets no sidecar")
		return admission.Errored(http.StatusInternalServerError, err)
	}
	injected, skip := inject.Inject(pod, ns, w.settings)
	resp := patch(pod, injected)
	missed, lockedOut := news(pod, ns, skip), w.lockedOut(ns, skip)
	resp.Warnings = slices.Concat(missed, lockedOut)
	if req.DryRun == nil || !*req.DryRun {
		w.tell(pod, req.Namespace, "NotIntercepted", missed)
		w.tell(pod, req.Namespace, "NoCredentials", lockedOut)
	}
	return resp
}

// patch compares the pods as we know them, so that fields which only a later Kubernetes knows stay as they are.
func patch(before, after *corev1.Pod) admission.Response {
	old, errOld := json.Marshal(before)
	text, errNew := json.Marshal(after)
	if err := errors.Join(errOld, errNew); err != nil {
		return admission.Errored(http.StatusInternalServerError, fmt.Errorf("encoding the pod: %w", err))
	}
	return admission.PatchResponseFromRaw(old, text)
}

// news is what whoever made the pod has to know.
func news(pod *corev1.Pod, ns inject.Namespace, skip *inject.Skip) []string {
	switch {
	case skip == nil:
		return inject.Bypassed(pod, ns)
	case skip.Told():
		return []string{"no sidecar of Weir: " + skip.Error()}
	}
	return nil
}

// lockedOut is what keeps a sidecar that was put in from Redis.
func (w *PodWebhook) lockedOut(ns inject.Namespace, skip *inject.Skip) []string {
	if why := inject.LockedOut(ns, w.settings); skip == nil && why != "" {
		return []string{why}
	}
	return nil
}

// tell tells it in events of the pod's owner: there is no pod yet, and most are made by a controller that heeds no
// warnings.
func (w *PodWebhook) tell(pod *corev1.Pod, namespace, reason string, news []string) {
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return
	}
	ref := &corev1.ObjectReference{APIVersion: owner.APIVersion, Kind: owner.Kind, Namespace: namespace, Name: owner.Name, UID: owner.UID}
	for _, note := range news {
		w.events.Eventf(ref, nil, corev1.EventTypeWarning, reason, "Inject", "%s", note)
	}
}

// namespace gives what matters of a namespace. The API server has asked because of a label, there or on the pod: a
// cache that hasn't seen the former isn't believed.
func (w *PodWebhook) namespace(ctx context.Context, name string) (inject.Namespace, error) {
	meta, err := namespaceFrom(ctx, w.cached, name)
	if err != nil || meta.Labels[v1alpha1.LabelInject] == "" {
		meta, err = namespaceFrom(ctx, w.live, name)
	}
	if err != nil {
		return inject.Namespace{}, fmt.Errorf("looking up namespace %s: %w", name, err)
	}
	var services corev1.ServiceList
	if err := w.cached.List(ctx, &services, client.InNamespace(name)); err != nil {
		return inject.Namespace{}, fmt.Errorf("listing the Services of namespace %s: %w", name, err)
	}
	return inject.Namespace{Name: name, Labels: meta.Labels, Annotations: meta.Annotations, Services: services.Items}, nil
}

func namespaceFrom(ctx context.Context, c client.Reader, name string) (*metav1.PartialObjectMetadata, error) {
	meta := &metav1.PartialObjectMetadata{}
	meta.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	return meta, c.Get(ctx, client.ObjectKey{Name: name}, meta)
}
