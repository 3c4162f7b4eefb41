// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 answers admission requests.
package v1alpha1
