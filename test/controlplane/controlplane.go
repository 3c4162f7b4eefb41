// SPDX-License-Identifier: Apache-2.0

// Package controlplane runs a real Kubernetes API server, with our CRDs in it, for tests and the demo.
package controlplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// ControlPlane is an API server and its etcd, on loopback ports. There is no controller manager: nothing
// makes pods of a Deployment, and nothing collects what a deleted owner leaves behind.
type ControlPlane struct {
	// Config is an administrator's, with client-side rate limits too high to matter. Copy it before
	// changing it.
	Config *rest.Config
	// Kubeconfig is the same for kubectl: the content of a kubeconfig file.
	Kubeconfig []byte
	// Kubectl is the path of a kubectl.
	Kubectl string
	// Root is the folder of our repository.
	Root string

	env *envtest.Environment
}

// Options are what a control plane may have.
type Options struct {
	// AuditLog is the file that tells of every request when it has been answered, and of a watch when it begins too:
	// an event of audit.k8s.io/v1 a line, without objects. Empty is none.
	AuditLog string
}

// auditPolicy has no request told before it is known to be allowed.
const auditPolicy = `{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [{"level": "Metadata"}]}`

// Start starts a control plane, in about 4 seconds. Its binaries are those of KUBEBUILDER_ASSETS or else
// those of hack/control-plane.sh, which first builds them where that hasn't been done. The caller must
// Stop it: its processes outlive this one.
func Start() (*ControlPlane, error) { return StartWith(Options{}) }

// StartWith is Start with options.
func StartWith(o Options) (*ControlPlane, error) {
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	assets, err := assets(root)
	if err != nil {
		return nil, err
	}
	env := &envtest.Environment{
		BinaryAssetsDirectory: assets,
		CRDDirectoryPaths:     []string{filepath.Join(root, "config", "crd", "bases")},
		ErrorIfCRDPathMissing: true,
	}
	if o.AuditLog != "" {
		if err := audit(env, o.AuditLog); err != nil {
			return nil, err
		}
	}
	cfg, err := env.Start()
	if err != nil {
		// What did start must not be left behind.
		return nil, errors.Join(fmt.Errorf("starting the control plane of %s: %w", assets, err), env.Stop())
	}
	return &ControlPlane{Config: cfg, Kubeconfig: env.KubeConfig, Kubectl: kubectl(assets), Root: root, env: env}, nil
}

// audit has the API server write an audit log.
func audit(env *envtest.Environment, log string) error {
	policy := log + ".policy"
	if err := os.WriteFile(policy, []byte(auditPolicy), 0o600); err != nil {
		return fmt.Errorf("writing the audit policy: %w", err)
	}
	env.ControlPlane.GetAPIServer().Configure().Set("audit-policy-file", policy).Set("audit-log-path", log)
	return nil
}

// Stop ends the control plane with all that it holds.
func (c *ControlPlane) Stop() error {
	if err := c.env.Stop(); err != nil {
		return fmt.Errorf("stopping the control plane: %w", err)
	}
	return nil
}

// Main is what a package's TestMain hands to os.Exit: it runs the tests with one control plane for all of
// them, in *c, and returns the exit code. Tests keep apart by using namespaces of their own.
func Main(m *testing.M, c **ControlPlane) int {
	started, err := Start()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	*c = started
	code := m.Run()
	if err := started.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// RunManager runs a manager until the test's end, and wants it to end well.
func RunManager(t *testing.T, mgr manager.Runnable) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// moduleRoot is the nearest folder above the working directory that holds our go.mod, so that the tests
// of any package, and a program that is run from anywhere in the tree, find the CRDs.
func moduleRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("finding the module: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("finding the module: no go.mod in %s or above", start)
		}
	}
}

func assets(root string) (string, error) {
	script := exec.Command(filepath.Join(root, "hack", "control-plane.sh")) //nolint:gosec,noctx // Our own script, which may take minutes and is ended by its own failure.
	script.Stderr = os.Stderr
	out, err := script.Output()
	if err != nil {
		return "", fmt.Errorf("running hack/control-plane.sh for kube-apiserver and etcd: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// kubectl prefers the user's own, as hack/control-plane.sh does.
func kubectl(assets string) string {
	if path, err := exec.LookPath("kubectl"); err == nil {
		return path
	}
	return filepath.Join(assets, "kubectl")
}
