// SPDX-License-Identifier: Apache-2.0

package node

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParseHierarchies(t *testing.T) {
	t.Run("every hierarchy of version 1 is found", func(t *testing.T) {
		got, err := parseHierarchies("5:name=systemd:/init.scope\n4:pids:/\n3:memory:/user.slice/a:b\n2:cpuset:/\n1:cpu,cpuacct:/\n0::/init.scope\n")
		if err != nil {
			t.Fatal(err)
		}
		want := []hierarchy{
			{controllers: "name=systemd", place: "/init.scope"},
			{controllers: "pids", place: "/"},
			{controllers: "memory", place: "/user.slice/a:b"},
			{controllers: "cpuset", place: "/"},
			{controllers: "cpu,cpuacct", place: "/"},
		}
		if diff := cmp.Diff(want, got, cmp.AllowUnexported(hierarchy{})); diff != "" {
			t.Errorf("hierarchies (-want +got):\n%s", diff)
		}
	})

	t.Run("a machine without version 1 is told of", func(t *testing.T) {
		_, err := parseHierarchies("0::/user.slice\n")
		want := "the node needs cgroups of version 1, and there is no cpu among this machine's"
		if err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	})
}

func TestAHierarchyIsMountedByItsName(t *testing.T) {
	for controllers, want := range map[string][2]string{
		"memory":       {"memory", "memory"},
		"cpu,cpuacct":  {"cpu,cpuacct", "cpu,cpuacct"},
		"name=systemd": {"systemd", "none,name=systemd"},
	} {
		h := hierarchy{controllers: controllers}
		if got := [2]string{h.name(), h.mountOptions()}; got != want {
			t.Errorf("%s: got %q, want %q", controllers, got, want)
		}
	}
}

func TestRemoveCgroup(t *testing.T) {
	t.Run("takes those below it too", func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "weir-node")
		if err := os.MkdirAll(filepath.Join(path, "kubepods", "besteffort"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := removeCgroup(path); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); !os.IsNotExist(err) {
			t.Errorf("got %v, want it gone", err)
		}
	})

	t.Run("takes it well that it is gone already", func(t *testing.T) {
		if err := removeCgroup(filepath.Join(t.TempDir(), "weir-node")); err != nil {
			t.Error(err)
		}
	})
}
