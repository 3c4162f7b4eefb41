// SPDX-License-Identifier: Apache-2.0

package inject

import (
	"errors"
	"fmt"
	"net/url"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// mostKeys is the most that a sidecar takes for its flag.
const mostKeys = 100_000_000

// Settings are what the sidecars of an installation have in common. They are of whoever installs Weir: a pod has
// no say in them.
type Settings struct {
	// Image of the sidecar.
	Image           string            `json:"image"`
	ImagePullPolicy corev1.PullPolicy `json:"imagePullPolicy,omitempty"`
	// Redis is the URL to count in. It has no password: everyone who may see a pod would see it.
	Redis string `json:"redis"`
	// ConfigRedis is the URL of the config store. Empty is Redis.
	ConfigRedis string `json:"configRedis,omitempty"`
	// MaxKeysPerPolicy is how many keys of a policy have counters of their own in each sidecar. 0 is the sidecar's default.
	MaxKeysPerPolicy int64 `json:"maxKeysPerPolicy,omitempty"`
	// Resources of the sidecar in most pods.
	Resources corev1.ResourceRequirements `json:"resources,omitempty"`
	// GuaranteedResources are both its requests and its limits in a pod of the class Guaranteed.
	GuaranteedResources corev1.ResourceList `json:"guaranteedResources"`
	// Credentials says that the manager keeps the Secrets. It isn't in the file.
	Credentials bool `json:"-"`
	// Instance is the name of the installation. It isn't in the file.
	Instance string `json:"-"`
}

// ParseSettings reads settings, in YAML. What it doesn't know is an error, as it may be a mistyped name.
func ParseSettings(text []byte) (Settings, error) {
	var s Settings
	if err := yaml.UnmarshalStrict(text, &s); err != nil {
		return Settings{}, fmt.Errorf("parsing the settings of sidecars: %w", err)
	}
	if err := s.check(); err != nil {
		return Settings{}, fmt.Errorf("checking the settings of sidecars: %w", err)
	}
	return s, nil
}

func (s Settings) check() error {
	if s.Image == "" {
		return errors.New("image is required")
	}
	if s.Redis == "" {
		return errors.New("redis is required: the URL to count in")
	}
	for name, address := range map[string]string{"redis": s.Redis, "configRedis": s.ConfigRedis} {
		u, err := url.Parse(address)
		if err != nil || u.User != nil || u.Query().Has("password") {
			return fmt.Errorf("%s must be a URL without a user and password, which every pod would show: they belong into the Secret %s of each namespace", name, CredentialsSecret)
		}
	}
	if s.MaxKeysPerPolicy < 0 || s.MaxKeysPerPolicy > mostKeys {
		return fmt.Errorf("maxKeysPerPolicy must be from 1 to %d", mostKeys)
	}
	whole := corev1.ResourceRequirements{Limits: s.GuaranteedResources}
	if !settled(&whole) {
		return errors.New("guaranteedResources must have cpu and memory")
	}
	return nil
}
