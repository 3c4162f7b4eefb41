// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// allowed are the flags of the sidecar that a pod may set, by annotation. The checks are as strict as the
// sidecar's own: one that doesn't start would keep the application from starting.
var allowed = []struct {
	annotation, flag string
	check            func(value string) error
}{
	{v1alpha1.AnnotationBootstrapMode, "--bootstrap-mode", oneOf("Open", "Closed")},
	{v1alpha1.AnnotationDecisionTimeout, "--decision-timeout", timeout},
	{v1alpha1.AnnotationTrustedProxies, "--trusted-proxies", networks},
	{v1alpha1.AnnotationLogLevel, "--log-level", oneOf("debug", "info", "warn", "error")},
}

// choices gives the flags that the pod sets.
func choices(pod *corev1.Pod) ([]string, *Skip) {
	var flags []string
	for _, a := range allowed {
		value, ok := pod.Annotations[a.annotation]
		if !ok {
			continue
		}
		if err := a.check(value); err != nil {
			return nil, invalid(a.annotation, "%v", err)
		}
		flags = append(flags, a.flag+"="+value)
	}
	return flags, nil
}

func oneOf(words ...string) func(string) error {
	return func(value string) error {
		if !slices.Contains(words, value) {
			return errors.New("must be one of " + strings.Join(words, ", "))
		}
		return nil
	}
}

func timeout(value string) error {
	d, err := time.ParseDuration(value)
	if err != nil || d < time.Millisecond || d > time.Second {
		return errors.New("must be a duration from 1ms to 1s, like 20ms")
	}
	return nil
}

func networks(value string) error {
	for s := range strings.SplitSeq(value, ",") {
		s = strings.TrimSpace(s)
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			continue
		}
		if p, err := netip.ParsePrefix(s); err != nil || p != p.Masked() {
			return errors.New("must be addresses or CIDRs, like 10.0.0.0/8,192.0.2.1")
		}
	}
	return nil
}
