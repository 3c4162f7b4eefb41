// SPDX-License-Identifier: Apache-2.0

package servingcert

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// The Secret is in the manager's own namespace, and so its rights are in a Role of their own.
//
// +kubebuilder:rbac:groups=admissionregistration.k8s.io,resources=mutatingwebhookconfigurations;validatingwebhookconfigurations,resourceNames=weir-policies;weir-pods,verbs=get;patch

// fieldOwner owns the caBundles and nothing else, so that whoever installs the configurations can apply them again.
const fieldOwner = client.FieldOwner("weir-manager-certificate")

// tell has every configuration trust the bundle.
func (k *Keeper) tell(ctx context.Context, bundle []byte) error {
	var errs []error
	for _, c := range k.configurations {
		errs = append(errs, k.trust(ctx, c.DeepCopyObject().(client.Object), bundle))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("telling the API server whom to trust: %w", err)
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.told = bundle
	return nil
}

// trust writes the bundle into a configuration, if it isn't there.
func (k *Keeper) trust(ctx context.Context, configuration client.Object, bundle []byte) error {
	err := k.client.Get(ctx, client.ObjectKeyFromObject(configuration), configuration)
	if apierrors.IsNotFound(err) {
		return nil // Whoever installed us does without.
	}
	if err != nil {
		return err
	}
	var webhooks []any
	same := true
	for name, has := range bundles(configuration) {
		same = same && bytes.Equal(has, bundle)
		webhooks = append(webhooks, map[string]any{
			"name":         name,
			"clientConfig": map[string]any{"caBundle": base64.StdEncoding.EncodeToString(bundle)},
		})
	}
	if same {
		return nil
	}
	u := &unstructured.Unstructured{Object: map[string]any{"webhooks": webhooks}}
	u.SetGroupVersionKind(kindOf(configuration))
	u.SetName(configuration.GetName())
	u.SetUID(configuration.GetUID())
	return k.client.Apply(ctx, client.ApplyConfigurationFromUnstructured(u), fieldOwner, client.ForceOwnership)
}

// bundles gives the caBundle of each webhook, by its name.
func bundles(configuration client.Object) map[string][]byte {
	found := map[string][]byte{}
	switch c := configuration.(type) {
	case *admissionv1.MutatingWebhookConfiguration:
		for i := range c.Webhooks {
			found[c.Webhooks[i].Name] = c.Webhooks[i].ClientConfig.CABundle
		}
	case *admissionv1.ValidatingWebhookConfiguration:
		for i := range c.Webhooks {
			found[c.Webhooks[i].Name] = c.Webhooks[i].ClientConfig.CABundle
		}
	}
	return found
}

func kindOf(configuration client.Object) schema.GroupVersionKind {
	kind := "MutatingWebhookConfiguration"
	if _, ok := configuration.(*admissionv1.ValidatingWebhookConfiguration); ok {
		kind = "ValidatingWebhookConfiguration"
	}
	return admissionv1.SchemeGroupVersion.WithKind(kind)
}
