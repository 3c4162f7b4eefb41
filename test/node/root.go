// SPDX-License-Identifier: Apache-2.0

package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// toolsDir is where the node sees the programs it is made of.
const toolsDir = "/opt/weir"

// system are the folders of the machine that the node sees, read-only: for nft, ip and mount.
var system = []string{"/usr", "/bin", "/sbin", "/lib", "/lib64"}

// sysctls are what kubelet insists on, and the whole machine's: the node sees files that say so instead.
var sysctls = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

// enterRoot gives this process, which is alone in a mount namespace, a file system of its own. Of the machine's
// it holds the programs, read-only. /etc and /var/log are folders of dir, and the rest is in memory, where nothing
// waits for a disk that others are busy with.
func enterRoot(dir, tools string) error {
	root := filepath.Join(dir, "root")
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("cutting off mounts from the machine's: %w", err)
	}
	if err := syscall.Mount("tmpfs", root, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mounting a root: %w", err)
	}
	for _, mount := range []func(root string) error{
		bindSystem,
		func(root string) error { return bind(tools, root+toolsDir, syscall.MS_RDONLY) },
		func(root string) error { return bind(filepath.Join(dir, "etc"), root+"/etc", syscall.MS_RDONLY) },
		func(root string) error { return bind(filepath.Join(dir, "log"), root+"/var/log", 0) },
		func(root string) error { return bind("/dev", root+"/dev", 0) },
		func(root string) error { return mountNew("proc", root+"/proc", "") },
		func(root string) error { return mountNew("sysfs", root+"/sys", "") },
		mountCgroups,
		makeTemporary,
	} {
		if err := mount(root); err != nil {
			return err
		}
	}
	if err := pivot(root); err != nil {
		return fmt.Errorf("changing to the new root: %w", err)
	}
	if err := hideSysctls(); err != nil {
		return err
	}
	if err := syscall.Sethostname([]byte(Name)); err != nil {
		return fmt.Errorf("setting the name: %w", err)
	}
	return os.Setenv("PATH", toolsDir+":/usr/sbin:/usr/bin:/sbin:/bin")
}

// bindSystem shows the machine's programs, in folders or through links, as the machine has them.
func bindSystem(root string) error {
	for _, dir := range system {
		info, err := os.Lstat(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("looking at %s: %w", dir, err)
		}
		if info.Mode().Type() != fs.ModeSymlink {
			err = bind(dir, root+dir, syscall.MS_RDONLY)
		} else {
			err = copyLink(dir, root+dir)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func copyLink(from, to string) error {
	target, err := os.Readlink(from)
	if err == nil {
		err = os.Symlink(target, to)
	}
	if err != nil {
		return fmt.Errorf("copying a link: %w", err)
	}
	return nil
}

// bind shows a folder at another place too.
func bind(from, to string, flags uintptr) error {
	if err := os.MkdirAll(to, 0o755); err != nil { //nolint:gosec // The node's pods aren't root.
		return fmt.Errorf("making a mount point: %w", err)
	}
	err := syscall.Mount(from, to, "", syscall.MS_BIND|syscall.MS_REC, "")
	if err == nil && flags != 0 {
		// A bind mount takes its flags only afterwards.
		err = syscall.Mount("", to, "", syscall.MS_BIND|syscall.MS_REMOUNT|flags, "")
	}
	if err != nil {
		return fmt.Errorf("mounting %s: %w", from, err)
	}
	return nil
}

// mountNew mounts a file system that the kernel makes.
func mountNew(kind, to, options string) error {
	if err := os.MkdirAll(to, 0o755); err != nil { //nolint:gosec // The node's pods aren't root.
		return fmt.Errorf("making a mount point: %w", err)
	}
	if err := syscall.Mount(kind, to, kind, 0, options); err != nil {
		return fmt.Errorf("mounting %s: %w", to, err)
	}
	return nil
}

// mountCgroups mounts the hierarchies as this process's namespace shows them: their roots are its own cgroups.
func mountCgroups(root string) error {
	own, err := ownHierarchies()
	if err != nil {
		return err
	}
	dir := root + "/sys/fs/cgroup"
	if err := mountNew("tmpfs", dir, "mode=755"); err != nil {
		return err
	}
	for _, h := range own {
		if err := mountNew("cgroup", filepath.Join(dir, h.name()), h.mountOptions()); err != nil {
			return err
		}
	}
	return nil
}

// makeTemporary makes the folders for what is forgotten when the node ends.
func makeTemporary(root string) error {
	for _, dir := range []string{"/run", "/root", "/var/lib"} {
		if err := os.Mkdir(root+dir, 0o755); err != nil { //nolint:gosec // The node's pods aren't root.
			return fmt.Errorf("making a folder: %w", err)
		}
	}
	if err := os.Mkdir(root+"/tmp", 0o777); err != nil { //nolint:gosec // Everybody's.
		return fmt.Errorf("making a folder: %w", err)
	}
	return nil
}

// pivot makes root the root, and lets go of the machine's.
func pivot(root string) error {
	old := filepath.Join(root, "machine")
	if err := os.Mkdir(old, 0o700); err != nil {
		return err
	}
	if err := syscall.PivotRoot(root, old); err != nil {
		return err
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := syscall.Unmount("/machine", syscall.MNT_DETACH); err != nil {
		return err
	}
	if err := os.Remove("/machine"); err != nil {
		return err
	}
	// kubelet hands mounts on to containers.
	return syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, "")
}

func hideSysctls() error {
	for name, value := range sysctls {
		file := filepath.Join("/run/sysctl", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			return fmt.Errorf("making a folder: %w", err)
		}
		if err := os.WriteFile(file, []byte(value+"\n"), 0o600); err != nil {
			return fmt.Errorf("writing a setting: %w", err)
		}
		if err := syscall.Mount(file, filepath.Join("/proc/sys", name), "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("hiding %s: %w", name, err)
		}
	}
	return nil
}
