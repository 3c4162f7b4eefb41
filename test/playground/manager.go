// SPDX-License-Identifier: Apache-2.0

package playground

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
)

// managerUser is who the manager is to the API server.
const managerUser = "system:serviceaccount:weir-system:weir-manager"

// Manager is a replica of the manager. It listens at the same addresses at each start.
type Manager struct {
	*Process
	// Health is where /healthz and /readyz are.
	Health string
	// Metrics is where its metrics are, over TLS, for those who may see them.
	Metrics string
	// Webhooks is where it answers admission requests, over TLS.
	Webhooks string
}

// NewManager gives a replica of the manager that has not started yet. It uses the kubeconfig, an administrator's, as
// the manager's own user, with the rights that the installation gives it. The caller must Stop it.
func (p *Playground) NewManager(ctx context.Context, o Options, name, kubeconfig string) (*Manager, error) {
	own := filepath.Join(o.Dir, name+".kubeconfig")
	if err := impersonate(kubeconfig, managerUser, own); err != nil {
		return nil, err
	}
	settings, err := p.writeSettings(ctx, filepath.Join(o.Dir, name+".d"))
	if err != nil {
		return nil, err
	}
	var addresses [3]string
	for i := range addresses {
		if addresses[i], err = freeAddress(ctx); err != nil {
			return nil, err
		}
	}
	health, metrics, webhooks := addresses[0], addresses[1], addresses[2]
	_, webhookPort, err := net.SplitHostPort(webhooks)
	if err != nil {
		return nil, fmt.Errorf("reading the port of the webhooks: %w", err)
	}
	flags := []string{
		"--kubeconfig", own, "--redis", p.Redis.URL(), "--instance", instance,
		"--leader-elect", "--leader-election-namespace", "weir-system",
		"--namespace", "weir-system", "--webhook-port", webhookPort, "--config-dir", settings,
		"--metrics-bind-address", metrics, "--health-probe-bind-address", health,
	}
	process := newProcess(o.Dir, name, filepath.Join(o.Binaries, "weir-manager"), append(flags, o.ManagerFlags...), nil)
	return &Manager{Process: process, Health: "http://" + health, Metrics: "https://" + metrics, Webhooks: "https://" + webhooks}, nil
}

// writeSettings writes the settings of injected sidecars, as installed, for the manager to read.
func (p *Playground) writeSettings(ctx context.Context, dir string) (string, error) {
	text, err := p.Kubectl(ctx, "get", "configmap", "--namespace", "weir-system", "weir-manager", "--output", `jsonpath={.data.sidecar\.yaml}`)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("making the manager's config folder: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "sidecar.yaml"), []byte(text), 0o600); err != nil {
		return "", fmt.Errorf("writing the settings of sidecars: %w", err)
	}
	return dir, nil
}
