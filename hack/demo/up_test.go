// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weir-dev/weir/test/controlplane"
	"github.com/weir-dev/weir/test/playground"
)

func TestTheWelcomeLeadsToKubectl(t *testing.T) {
	p := &playground.Playground{
		ControlPlane: &controlplane.ControlPlane{Kubectl: "/cache/tools/kubectl"},
		Sidecars:     []*playground.Sidecar{{}},
	}
	const export = "  export PATH=$PATH:/cache/tools\n"

	t.Run("where the PATH has none", func(t *testing.T) {
		t.Setenv("PATH", t.TempDir())
		if got := welcome(p); !strings.Contains(got, export) {
			t.Errorf("got %s", got)
		}
	})

	t.Run("and says nothing of it where the PATH has one", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "kubectl"), nil, 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir)
		if got := welcome(p); strings.Contains(got, export) {
			t.Errorf("got %s", got)
		}
	})
}
