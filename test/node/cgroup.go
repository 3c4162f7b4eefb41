// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// endPatience is how long the processes of a node may take to end that has been killed.
const endPatience = time.Minute

// hierarchy is one of the trees of cgroups (version 1), and the place of a process in it.
type hierarchy struct {
	// controllers as the kernel writes them: "memory", "cpu,cpuacct" or "name=systemd".
	controllers string
	// place is the path of the process's cgroup, from the root that it can see.
	place string
}

// name is what the hierarchy's mount point is called.
func (h hierarchy) name() string { return strings.TrimPrefix(h.controllers, "name=") }

// mountOptions are those of a mount of the whole hierarchy.
func (h hierarchy) mountOptions() string {
	if h.name() != h.controllers {
		return "none," + h.controllers
	}
	return h.controllers
}

// parseHierarchies reads what /proc/PID/cgroup says of version 1.
func parseHierarchies(s string) ([]hierarchy, error) {
	var all []hierarchy
	for line := range strings.Lines(s) {
		// A line is "4:memory:/user.slice", and "0::/user.slice" for version 2.
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) == 3 && fields[1] != "" {
			all = append(all, hierarchy{controllers: fields[1], place: fields[2]})
		}
	}
	for _, needed := range []string{"cpu", "cpuset", "memory", "pids"} {
		if !slices.ContainsFunc(all, func(h hierarchy) bool { return slices.Contains(strings.Split(h.controllers, ","), needed) }) {
			return nil, fmt.Errorf("the node needs cgroups of version 1, and there is no %s among this machine's", needed)
		}
	}
	return all, nil
}

// ownHierarchies are those of this process.
func ownHierarchies() ([]hierarchy, error) {
	raw, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("reading this process's cgroups: %w", err)
	}
	return parseHierarchies(string(raw))
}

// childCgroups names a cgroup below this process's own in every hierarchy.
func childCgroups(name string) ([]string, error) {
	own, err := ownHierarchies()
	if err != nil {
		return nil, err
	}
	var paths []string
	for _, h := range own {
		paths = append(paths, filepath.Join("/sys/fs/cgroup", h.name(), h.place, name))
	}
	return paths, nil
}

// makeCgroup makes an empty cgroup that a process can join.
func makeCgroup(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil { //nolint:gosec // The modes of cgroups are the kernel's matter.
		return fmt.Errorf("making a cgroup: %w", err)
	}
	// A new cpuset has no processors and no memory, and takes nobody in.
	for _, resource := range []string{"cpuset.cpus", "cpuset.mems"} {
		inherited, err := os.ReadFile(filepath.Join(filepath.Dir(path), resource)) //nolint:gosec // The kernel's files.
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(path, resource), inherited, 0o600)
		}
		if err != nil {
			return fmt.Errorf("handing on %s: %w", resource, err)
		}
	}
	return nil
}

// joinCgroup moves this process with all its threads.
func joinCgroup(path string) error {
	if err := os.WriteFile(filepath.Join(path, "cgroup.procs"), []byte("0"), 0o600); err != nil {
		return fmt.Errorf("joining a cgroup: %w", err)
	}
	return nil
}

// removeCgroup removes a cgroup and those below it. One that isn't there is fine. Processes in it that are
// ending get the time for it.
func removeCgroup(path string) error {
	for end := time.Now().Add(endPatience); ; time.Sleep(20 * time.Millisecond) {
		err := tryRemoveCgroup(path)
		if !errors.Is(err, syscall.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}

func tryRemoveCgroup(path string) error {
	var dirs []string
	err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	})
	// The innermost first. Their files go with them.
	for _, dir := range slices.Backward(dirs) {
		err = errors.Join(err, os.Remove(dir))
	}
	if err != nil {
		return fmt.Errorf("removing a cgroup: %w", err)
	}
	return nil
}
