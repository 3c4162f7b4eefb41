// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// The Secret, in the pod's namespace, that has the user and password for Redis. The pod starts without it as well.
const (
	CredentialsSecret = "weir-redis"
	// CredentialsType is that of Secrets that the manager keeps. Nothing else is ever of this type.
	CredentialsType corev1.SecretType = "ratelimit.weir.dev/redis-credentials" //nolint:gosec // It is the name of a type.
)

// MayHaveCredentials says whether the manager may keep the Secret in a namespace with these labels. The
// ValidatingAdmissionPolicy weir-manager-secrets asks the same.
func MayHaveCredentials(labels map[string]string) bool {
	return labels[v1alpha1.LabelInject] == v1alpha1.InjectEnabled || labels[v1alpha1.LabelCredentials] == v1alpha1.CredentialsEnabled
}

// LockedOut says why the sidecar of a pod that asks for it by itself can't log in to Redis. Empty is that it can.
func LockedOut(ns Namespace, s Settings) string {
	if !s.Credentials || MayHaveCredentials(ns.Labels) {
		return ""
	}
	return fmt.Sprintf("the sidecar can't log in to Redis: label namespace %s %s=%s", ns.Name, v1alpha1.LabelCredentials, v1alpha1.CredentialsEnabled)
}
