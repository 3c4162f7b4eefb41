// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Where the sidecar finds what is mounted for it.
const (
	podDir         = "/etc/weir/pod"
	credentialsDir = "/etc/weir/redis" //nolint:gosec // It is the name of a folder.
	stateDir       = "/var/lib/weir"
	// tokenDir is where every container would get the pod's token for the Kubernetes API.
	tokenDir = "/var/run/secrets/kubernetes.io/serviceaccount" //nolint:gosec // It is the name of a folder.
)

// userID is that of the sidecar's image, said again: a pod that runs as root by default would otherwise have
// the sidecar do so, which it refuses.
const userID = 65532

// sidecar gives the container, without names for its ports.
func sidecar(namespace string, p plan, s Settings, r corev1.ResourceRequirements) corev1.Container {
	c := corev1.Container{
		Name:            Container,
		Image:           s.Image,
		ImagePullPolicy: s.ImagePullPolicy,
		Args:            slices.Concat(flags(namespace, p.ports, s), p.chosen),
		// An init container that goes on: it is ready before the application starts, ends after it, and keeps no
		// Job from completing.
		RestartPolicy: new(corev1.ContainerRestartPolicyAlways),
		Env:           []corev1.EnvVar{fromPod("POD_NAME", "metadata.name"), fromPod("POD_UID", "metadata.uid")},
		Resources:     r,
		StartupProbe:  ownProbe("/readyz", 1, 60),
		// Readiness never depends on Redis: a store that is away must not empty Services.
		ReadinessProbe: ownProbe("/readyz", 5, 3),
		// As soon as the pod is to end. The sidecar itself is ended after the application, too late for clients
		// that keep their connections.
		Lifecycle: &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{
			Command: []string{"/weir-sidecar", "leave"},
		}}},
		LivenessProbe:   ownProbe("/healthz", 10, 6),
		SecurityContext: securityContext(),
		VolumeMounts: []corev1.VolumeMount{
			{Name: "weir-pod", MountPath: podDir, ReadOnly: true},
			{Name: "weir-redis", MountPath: credentialsDir, ReadOnly: true},
			{Name: "weir-state", MountPath: stateDir},
			noToken(),
		},
	}
	for i := range p.ports {
		c.Ports = append(c.Ports, corev1.ContainerPort{ContainerPort: listening(i), Protocol: corev1.ProtocolTCP})
	}
	return c
}

// listening is the number of the sidecar's port that stands before the i-th of the application's.
func listening(i int) int32 { return firstPort + int32(i) }

// flags are those that the pod has no say in.
func flags(namespace string, ports []port, s Settings) []string {
	f := []string{
		"--namespace=" + namespace,
		"--instance=" + s.Instance,
		"--redis=" + s.Redis,
	}
	if s.ConfigRedis != "" {
		f = append(f, "--config-redis="+s.ConfigRedis)
	}
	if s.MaxKeysPerPolicy > 0 {
		f = append(f, fmt.Sprintf("--max-keys-per-policy=%d", s.MaxKeysPerPolicy))
	}
	f = append(f,
		"--redis-credentials="+credentialsDir,
		"--pod-labels-file="+podDir+"/labels",
		"--state-dir="+stateDir,
		fmt.Sprintf("--probe-listen=:%d", probePort),
		// It ends after the application: there is nobody left to accept requests for.
		"--drain-delay=0s",
	)
	for i, p := range ports {
		f = append(f,
			fmt.Sprintf("--listen=%s=:%d", p.name, listening(i)),
			fmt.Sprintf("--upstream=%s=http://127.0.0.1:%d", p.name, p.number))
	}
	return f
}

func fromPod(name, path string) corev1.EnvVar {
	ref := &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: path}
	return corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{FieldRef: ref}}
}

func ownProbe(path string, period, failures int32) *corev1.Probe {
	return &corev1.Probe{
		ProbeHandler:     corev1.ProbeHandler{HTTPGet: atProbePort(path)},
		TimeoutSeconds:   2,
		PeriodSeconds:    period,
		SuccessThreshold: 1,
		FailureThreshold: failures,
	}
}

func atProbePort(path string) *corev1.HTTPGetAction {
	return &corev1.HTTPGetAction{Path: path, Port: intstr.FromInt32(probePort), Scheme: corev1.URISchemeHTTP}
}

// noToken stands where the API server would mount the pod's token, as it does where nothing else is mounted. We
// have no use for it.
func noToken() corev1.VolumeMount {
	return corev1.VolumeMount{Name: "weir-pod", MountPath: tokenDir, ReadOnly: true}
}

// securityContext is what the restricted profile of Pod Security asks for, said in the container, since a pod may
// say less.
func securityContext() *corev1.SecurityContext {
	return &corev1.SecurityContext{
		RunAsNonRoot: new(true),
		RunAsUser:    new(int64(userID)),
		// The files of a Secret belong to root, or to the pod's fsGroup, which every container is in.
		RunAsGroup:               new(int64(0)),
		Privileged:               new(false),
		AllowPrivilegeEscalation: new(false),
		ReadOnlyRootFilesystem:   new(true),
		Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
		SeccompProfile:           &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
	}
}

func volumes() []corev1.Volume {
	labels := corev1.DownwardAPIVolumeFile{
		Path: "labels", FieldRef: &corev1.ObjectFieldSelector{APIVersion: "v1", FieldPath: "metadata.labels"},
	}
	return []corev1.Volume{
		{Name: "weir-pod", VolumeSource: corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{
			Items: []corev1.DownwardAPIVolumeFile{labels}, DefaultMode: new(int32(0o444)),
		}}},
		{Name: "weir-redis", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{
			SecretName: CredentialsSecret, Optional: new(true), DefaultMode: new(int32(0o440)),
		}}},
		// In memory: on disk it would keep cluster autoscalers from removing the node.
		{Name: "weir-state", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{
			Medium: corev1.StorageMediumMemory, SizeLimit: new(resource.MustParse("8Mi")),
		}}},
	}
}
