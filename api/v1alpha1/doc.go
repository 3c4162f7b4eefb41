// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 defines the rate limit API.
//
// A field that a release does not implement yet is in the schema all the same: a policy that uses it is
// told so with Accepted=False and reason Unsupported. It is never ignored.
//
// +kubebuilder:object:generate=true
// +groupName=ratelimit.weir.dev
package v1alpha1
