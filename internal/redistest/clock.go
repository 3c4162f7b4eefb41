// SPDX-License-Identifier: Apache-2.0

package redistest

import (
	"cmp"
	_ "embed"
	encoding "encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// shim is the source of a library that sets the wall clock of a process off.
//
//go:embed shim/clock.c
var shim []byte

// Clock is the wall clock of one server.
type Clock struct{ path string }

// StartWithClock is [Start] for a server whose wall clock the test sets. It takes a C compiler: cc, or what CC names. A
// missing one fails the test.
func StartWithClock(tb testing.TB) (*Server, *Clock) {
	tb.Helper()
	dir := tb.TempDir()
	library := filepath.Join(dir, "clock.so")
	if err := compile(tb, library); err != nil {
		tb.Fatal(err)
	}
	c := &Clock{path: filepath.Join(dir, "offset")}
	if err := c.Set(0); err != nil {
		tb.Fatal(err)
	}
	s, err := newServer(dir)
	if err != nil {
		tb.Fatal(err)
	}
	s.env = []string{"LD_PRELOAD=" + library, "WEIR_CLOCK=" + c.path}
	if err := s.Restart(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(s.Kill)
	return s, c
}

// Set has the server's clock be ahead of the machine's by whole seconds, or behind it, from now on.
func (c *Clock) Set(ahead time.Duration) error {
	seconds := int64(ahead / time.Second)
	// In place: the server has the file mapped.
	file, err := os.OpenFile(c.path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("setting the clock: %w", err)
	}
	defer func() { _ = file.Close() }()
	if err := encoding.Write(file, encoding.NativeEndian, seconds); err != nil {
		return fmt.Errorf("setting the clock: %w", err)
	}
	return nil
}

// compile makes a library of the shim.
func compile(tb testing.TB, library string) error {
	source := filepath.Join(filepath.Dir(library), "clock.c")
	if err := os.WriteFile(source, shim, 0o600); err != nil {
		return fmt.Errorf("writing the source of the clock: %w", err)
	}
	cc := exec.CommandContext(tb.Context(), cmp.Or(os.Getenv("CC"), "cc"), "-shared", "-fPIC", "-O2", "-o", library, source) //nolint:gosec // The caller's choice of compiler.
	if out, err := cc.CombinedOutput(); err != nil {
		return fmt.Errorf("compiling what sets Redis's clock (it takes a C compiler, like the race detector; CC names another than cc): %w\n%s", err, out)
	}
	return nil
}
