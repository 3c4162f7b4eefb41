// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestTheSidecarHoldsNoKubernetesClient(t *testing.T) {
	for _, p := range packages(t, ".") {
		if strings.HasPrefix(p, "k8s.io/client-go") || strings.HasPrefix(p, "sigs.k8s.io/controller-runtime") {
			t.Errorf("it holds %s; go mod why %s", p, p)
		}
	}
}

// TestTimeZonesAreThere would fail for a binary that refuses every calendar in an image with nothing else.
func TestTimeZonesAreThere(t *testing.T) {
	for _, command := range []string{".", "../manager"} {
		if !slices.Contains(packages(t, command), "time/tzdata") {
			t.Errorf("%s holds no time zones", command)
		}
	}
}

// packages lists what a command is made of.
func packages(t *testing.T, command string) []string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-deps", command).Output()
	if err != nil {
		t.Fatalf("listing the packages of %s: %v", command, err)
	}
	packages := strings.Fields(string(out))
	if len(packages) < 100 {
		t.Fatalf("go list knows of %d packages only: %s", len(packages), out)
	}
	return packages
}
