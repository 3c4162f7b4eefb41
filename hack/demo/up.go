// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/weir-dev/weir/test/playground"
)

const (
	// startPatience is how long up waits for everything to run.
	startPatience = 2 * time.Minute
	// stopPatience is how long down waits for everything to end.
	stopPatience = 30 * time.Second
	// welcomeFile is written when everything runs: what to do next.
	welcomeFile = "welcome.txt"
	pidFile     = "pid"
)

// up starts a playground that outlives this process, and says what to do with it.
func up(ctx context.Context) error {
	dir, err := stateDir()
	if err != nil {
		return err
	}
	if pid, running := runningPlayground(dir); running {
		return fmt.Errorf("the demo is up already, as process %d: make demo-down ends it", pid)
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("clearing away the last demo: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making a folder: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding this program: %w", err)
	}
	// The program may be a temporary one of go run, and must outlive that.
	keeper := filepath.Join(dir, "demo")
	if err := copyFile(self, keeper); err != nil {
		return err
	}
	cmd := exec.Command(keeper, "serve") //nolint:gosec,noctx // This very program, which is to outlive this process.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	log, err := os.Create(filepath.Join(dir, "demo.log")) //nolint:gosec // Our own folder.
	if err != nil {
		return fmt.Errorf("making a log: %w", err)
	}
	defer func() { _ = log.Close() }()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting the playground: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, pidFile), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
		return errors.Join(fmt.Errorf("noting the process: %w", err), cmd.Process.Signal(syscall.SIGTERM))
	}
	fmt.Println("Starting an API server, Redis, the manager, an application and a sidecar in front of it...")
	return awaitWelcome(ctx, cmd, dir)
}

// awaitWelcome prints the welcome as soon as there is one.
func awaitWelcome(ctx context.Context, cmd *exec.Cmd, dir string) error {
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	deadline := time.After(startPatience)
	for {
		if welcome, err := os.ReadFile(filepath.Join(dir, welcomeFile)); err == nil { //nolint:gosec // Our own folder.
			fmt.Print(string(welcome))
			return nil
		}
		select {
		case err := <-ended:
			return fmt.Errorf("the playground ended (%w); its logs are in %s", err, dir)
		case <-ctx.Done():
			return errors.Join(ctx.Err(), cmd.Process.Signal(syscall.SIGTERM))
		case <-deadline:
			return errors.Join(fmt.Errorf("the playground is not up after %s; its logs are in %s", startPatience, dir), cmd.Process.Signal(syscall.SIGTERM))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// serve is the process that up leaves behind: it keeps a playground until it is told to end.
func serve(ctx context.Context) error {
	dir, err := stateDir()
	if err != nil {
		return err
	}
	p, err := playground.Start(ctx, options(dir))
	if err == nil {
		err = settle(ctx, p, dir)
	}
	if err == nil {
		<-ctx.Done()
	}
	return errors.Join(err, p.Stop())
}

// settle applies the samples and writes the welcome.
func settle(ctx context.Context, p *playground.Playground, dir string) error {
	if _, err := p.Kubectl(ctx, "apply", "--kustomize", "config/samples"); err != nil {
		return err
	}
	if _, err := p.AwaitPolicy(ctx, policyName, 20*time.Second, ready); err != nil {
		return err
	}
	// Written whole or not at all: up reads it as soon as it is there.
	temporary := filepath.Join(dir, welcomeFile+".new")
	if err := os.WriteFile(temporary, []byte(welcome(p)), 0o600); err != nil {
		return fmt.Errorf("writing the welcome: %w", err)
	}
	return os.Rename(temporary, filepath.Join(dir, welcomeFile))
}

func welcome(p *playground.Playground) string {
	s := p.Sidecars[0]
	environment := "export KUBECONFIG=" + p.Kubeconfig
	if _, err := exec.LookPath("kubectl"); err != nil {
		environment += "\n  export PATH=$PATH:" + filepath.Dir(p.ControlPlane.Kubectl)
	}
	return strings.NewReplacer("ENVIRONMENT", environment, "SIDECAR", s.URL, "ADMIN", s.Admin).Replace(`
Weir is up. Next:

  ENVIRONMENT
  kubectl get weirpolicy --namespace shop

  # 30 requests of one client; its limit is 100 a minute and 20 at once
  for i in $(seq 30); do curl -s -o /dev/null -w '%{http_code}\n' -H 'x-api-key: me' SIDECAR/api/orders; done | sort | uniq -c
  curl -i -H 'x-api-key: me' SIDECAR/api/orders

  # change the limit and look again
  kubectl edit weirpolicy --namespace shop per-api-key
  kubectl describe weirpolicy --namespace shop per-api-key

  curl -s ADMIN/debug/snapshot        # what the sidecar enforces
  curl -s ADMIN/metrics | grep weir_

  make demo-down                      # ends it all
`)
}

// down ends what up has left running.
func down() error {
	dir, err := stateDir()
	if err != nil {
		return err
	}
	pid, running := runningPlayground(dir)
	if !running {
		fmt.Println("The demo is not up.")
		return nil
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		return fmt.Errorf("ending process %d: %w", pid, err)
	}
	for end := time.Now().Add(stopPatience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if _, running := runningPlayground(dir); !running {
			fmt.Println("The demo is down.")
			return os.RemoveAll(dir)
		}
	}
	return fmt.Errorf("process %d did not end within %s; its logs are in %s", pid, stopPatience, dir)
}

// runningPlayground gives the process that keeps the playground, if it runs.
func runningPlayground(dir string) (int, bool) {
	raw, err := os.ReadFile(filepath.Join(dir, pidFile)) //nolint:gosec // Our own folder.
	if err != nil {
		return 0, false
	}
	pid, err := strconv.Atoi(string(raw))
	if err != nil {
		return 0, false
	}
	// The number may be another program's by now.
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return pid, err == nil && exe == filepath.Join(dir, "demo")
}

// stateDir is where the playground that up starts has its files.
func stateDir() (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("finding the cache folder: %w", err)
	}
	return filepath.Join(cache, "weir", "demo"), nil
}

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
