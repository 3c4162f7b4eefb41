// SPDX-License-Identifier: Apache-2.0

package inject_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/weir-dev/weir/api/v1alpha1"
	"github.com/weir-dev/weir/internal/inject"
)

func TestSettingsThatCannotBeAreTold(t *testing.T) {
	const good = "image: a\nredis: redis://r\nguaranteedResources: {cpu: 1, memory: 1Gi}\n"
	if _, err := inject.ParseSettings([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ text, want string }{
		"a name that isn't known": {good + "images: b", `unknown field "images"`},
		"no image":                {strings.Replace(good, "image: a", "", 1), "image is required"},
		"no Redis":                {strings.Replace(good, "redis: redis://r", "", 1), "redis is required: the URL to count in"},
		"a password that every pod would show": {
			strings.Replace(good, "redis://r", "redis://:secret@r", 1),
			"redis must be a URL without a user and password, which every pod would show: they belong into the Secret weir-redis of each namespace",
		},
		"one of the config store": {
			good + "configRedis: redis+sentinel://r?master_name=m&password=secret",
			"configRedis must be a URL without a user and password, which every pod would show: they belong into the Secret weir-redis of each namespace",
		},
		"fewer keys than none":               {good + "maxKeysPerPolicy: -1", "maxKeysPerPolicy must be from 1 to 100000000"},
		"a Guaranteed pod could not stay so": {strings.Replace(good, "cpu: 1, ", "", 1), "guaranteedResources must have cpu and memory"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := inject.ParseSettings([]byte(test.text))
			if err == nil || !strings.HasSuffix(err.Error(), test.want) {
				t.Errorf("got error %v, want one that ends with %q", err, test.want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("the error shows the password: %v", err)
			}
		})
	}
}

func TestServicesThatBypassTheSidecarAreTold(t *testing.T) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "checkout"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Ports: []corev1.ContainerPort{
			{Name: "http", ContainerPort: 8080}, {Name: "metrics", ContainerPort: 9090},
		}}}},
	}
	service := func(name, app string, ports ...corev1.ServicePort) corev1.Service {
		return corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: name},
			Spec:       corev1.ServiceSpec{Selector: map[string]string{"app": app}, Ports: ports},
		}
	}
	got := inject.Bypassed(pod, inject.Namespace{Labels: map[string]string{v1alpha1.LabelInject: v1alpha1.InjectEnabled}, Services: []corev1.Service{
		service("by-name", "checkout", corev1.ServicePort{Port: 80, TargetPort: intstr.FromString("http")}),
		service("by-number", "checkout", corev1.ServicePort{Port: 80, TargetPort: intstr.FromInt32(8080)}),
		service("by-its-own-number", "checkout", corev1.ServicePort{Port: 8080}),
		service("another-port", "checkout", corev1.ServicePort{Port: 9090}),
		service("another-protocol", "checkout", corev1.ServicePort{Port: 8080, Protocol: corev1.ProtocolUDP}),
		service("another-pod", "cart", corev1.ServicePort{Port: 8080}),
	}})
	want := []string{
		"Service by-number reaches port 8080 by number, past the sidecar: set targetPort: http",
		"Service by-its-own-number reaches port 8080 by number, past the sidecar: set targetPort: http",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("told (-want +got):\n%s", diff)
	}
}

func TestTheCapOfKeysReachesTheSidecar(t *testing.T) {
	capped := func(keys int64) bool {
		s := settings(t)
		s.MaxKeysPerPolicy = keys
		pod, ns := parse(t, read(t, "testdata/everything-chosen.in.yaml"))
		injected, skip := inject.Inject(pod, ns, s)
		if skip != nil {
			t.Fatal(skip)
		}
		return slices.ContainsFunc(injected.Spec.InitContainers, func(c corev1.Container) bool {
			return c.Name == inject.Container && slices.Contains(c.Args, "--max-keys-per-policy=1000")
		})
	}
	if !capped(1000) || capped(0) {
		t.Errorf("the flag is there with a cap: %t, and without: %t", capped(1000), capped(0))
	}
}
