// SPDX-License-Identifier: Apache-2.0

// Package keep leaves a process running behind a command, until another command ends it.
package keep

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

const (
	// startPatience is how long Up waits for the welcome.
	startPatience = 2 * time.Minute
	// stopPatience is how long Down waits for the process to end.
	stopPatience = 30 * time.Second

	welcomeFile = "welcome.txt"
	pidFile     = "pid"
)

// Keeper knows a process by its folder.
type Keeper struct {
	// Name is what the process keeps, as people are told of it, and the name of its program.
	Name string
	// Dir is the process's folder. Up makes it and Down removes it, with all that is in it.
	Dir string
	// Remedy is the command that runs Down.
	Remedy string
	// Clean clears up what a process that was killed may have left behind, before Dir is removed. Nil is
	// nothing to clear up.
	Clean func() error
}

// Up starts this very program once more, with args, as a process that outlives this one. It shows what that
// process prints, until it calls [Keeper.Welcome], and then shows the welcome.
func (k Keeper) Up(ctx context.Context, args ...string) error {
	if pid, running := k.running(); running {
		return fmt.Errorf("the %s is up already, as process %d: %s ends it", k.Name, pid, k.Remedy)
	}
	if err := k.clean(); err != nil {
		return err
	}
	if err := os.MkdirAll(k.Dir, 0o700); err != nil {
		return fmt.Errorf("making a folder: %w", err)
	}
	log, err := os.Create(filepath.Join(k.Dir, k.Name+".log"))
	if err != nil {
		return fmt.Errorf("making a log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd, err := k.start(log, args)
	if err != nil {
		return err
	}
	return k.awaitWelcome(ctx, cmd, log.Name())
}

// Welcome tells Up that everything runs, and what to tell the user to do next.
func (k Keeper) Welcome(text string) error {
	// Written whole or not at all: Up reads it as soon as it is there.
	temporary := filepath.Join(k.Dir, welcomeFile+".new")
	if err := os.WriteFile(temporary, []byte(text), 0o600); err != nil {
		return fmt.Errorf("writing the welcome: %w", err)
	}
	return os.Rename(temporary, filepath.Join(k.Dir, welcomeFile))
}

// Down ends the process that Up has left, with SIGTERM, and removes its folder.
func (k Keeper) Down() error {
	pid, running := k.running()
	if !running {
		fmt.Printf("The %s is not up.\n", k.Name)
		return k.clean()
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("ending process %d: %w", pid, err)
	}
	for end := time.Now().Add(stopPatience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, running := k.running(); !running {
			fmt.Printf("The %s is down.\n", k.Name)
			return k.clean()
		}
	}
	return fmt.Errorf("process %d did not end within %s; its logs are in %s", pid, stopPatience, k.Dir)
}

func (k Keeper) start(log *os.File, args []string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding this program: %w", err)
	}
	// The program may be a temporary one of go run, and must outlive that.
	if err := copyFile(self, k.program()); err != nil {
		return nil, err
	}
	cmd := exec.Command(k.program(), args...) //nolint:gosec,noctx // This very program, which is to outlive this process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting the %s: %w", k.Name, err)
	}
	if err := os.WriteFile(filepath.Join(k.Dir, pidFile), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("noting the process: %w", err), cmd.Process.Signal(syscall.SIGTERM))
	}
	return cmd, nil
}

// awaitWelcome prints the process's log as it grows, and the welcome as soon as there is one.
func (k Keeper) awaitWelcome(ctx context.Context, cmd *exec.Cmd, logPath string) error {
	log, err := os.Open(logPath) //nolint:gosec // Our own folder.
	if err != nil {
		return errors.Join(fmt.Errorf("reading the log: %w", err), cmd.Process.Signal(syscall.SIGTERM))
	}
	defer func() { _ = log.Close() }()
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	deadline := time.After(startPatience)
	for {
		_, _ = io.Copy(os.Stdout, log) // Up to its present end.
		if welcome, err := os.ReadFile(filepath.Join(k.Dir, welcomeFile)); err == nil {
			fmt.Print(string(welcome))
			return nil
		}
		select {
		case err := <-ended:
			_, _ = io.Copy(os.Stdout, log)
			return fmt.Errorf("the %s ended (%w); its logs are in %s", k.Name, err, k.Dir)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), cmd.Process.Signal(syscall.SIGTERM))
		case <-deadline:
			return errors.Join(fmt.Errorf("the %s is not up after %s; its logs are in %s", k.Name, startPatience, k.Dir), cmd.Process.Signal(syscall.SIGTERM))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// running gives the process, if it runs.
func (k Keeper) running() (int, bool) {
	raw, err := os.ReadFile(filepath.Join(k.Dir, pidFile))
	if err != nil {
		return 0, false
	}
	pid, err := strconv.Atoi(string(raw))
	if err != nil {
		return 0, false
	}
	// The number may be another program's by now.
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return pid, err == nil && exe == k.program()
}

func (k Keeper) clean() error {
	if k.Clean != nil {
		if err := k.Clean(); err != nil {
			return fmt.Errorf("clearing up after the last %s: %w", k.Name, err)
		}
	}
	if err := os.RemoveAll(k.Dir); err != nil {
		return fmt.Errorf("clearing up after the last %s: %w", k.Name, err)
	}
	return nil
}

func (k Keeper) program() string { return filepath.Join(k.Dir, k.Name) }

func copyFile(from, to string) error {
	content, err := os.ReadFile(from) //nolint:gosec // This very program.
	if err != nil {
		return fmt.Errorf("reading %s: %w", from, err)
	}
	if err := os.WriteFile(to, content, 0o700); err != nil { //nolint:gosec // A program has to be executable.
		return fmt.Errorf("writing %s: %w", to, err)
	}
	return nil
}
