// SPDX-License-Identifier: Apache-2.0

package playground

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// stopPatience is how long a process gets to end by itself.
const stopPatience = 20 * time.Second

// Process is a binary of ours that runs in the playground, and can be stopped and started again.
type Process struct {
	// Log is the path of what it has logged, over all its starts.
	Log string

	path string
	args []string
	env  []string
	cmd  *exec.Cmd
	done chan struct{} // closed when cmd has ended
	err  error         // of cmd's end
}

// newProcess gives a process that has not started yet.
func newProcess(dir, name, path string, args, env []string) *Process {
	return &Process{Log: filepath.Join(dir, name+".log"), path: path, args: args, env: append(os.Environ(), env...)}
}

// Start starts it.
func (p *Process) Start() error {
	log, err := os.OpenFile(p.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("opening the log of %s: %w", filepath.Base(p.path), err)
	}
	defer func() { _ = log.Close() }()      // The child has a handle of its own.
	p.cmd = exec.Command(p.path, p.args...) //nolint:gosec,noctx // A binary that we built, which is stopped by Stop.
	p.cmd.Stdout, p.cmd.Stderr, p.cmd.Env = log, log, p.env
	// Whatever ends the playground ends its processes.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", filepath.Base(p.path), err)
	}
	cmd, done := p.cmd, make(chan struct{})
	p.done = done
	go func() {
		p.err = cmd.Wait()
		close(done)
	}()
	return nil
}

// Stop asks it to end, waits until it has, and says if it did not end well.
func (p *Process) Stop() error {
	if !p.running() {
		return nil
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping %s: %w", filepath.Base(p.path), err)
	}
	select {
	case <-p.done:
	case <-time.After(stopPatience):
		p.Kill()
		return fmt.Errorf("stopping %s: it did not end within %s", filepath.Base(p.path), stopPatience)
	}
	if p.err != nil {
		return fmt.Errorf("stopping %s: %w", filepath.Base(p.path), p.err)
	}
	return nil
}

// Pause keeps it from doing anything, its connections open, until [Process.Resume].
func (p *Process) Pause() error { return p.cmd.Process.Signal(syscall.SIGSTOP) }

// Resume ends a [Process.Pause].
func (p *Process) Resume() error { return p.cmd.Process.Signal(syscall.SIGCONT) }

// PID is the process's number. It must have been started.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Ended is closed when it has ended, by itself or not. It must have been started.
func (p *Process) Ended() <-chan struct{} { return p.done }

// Kill ends it at once.
func (p *Process) Kill() {
	if !p.running() {
		return
	}
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (p *Process) running() bool {
	if p.done == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}
