// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
)

// runOf gives a member that knows of so many replicas and has a file, in which it keeps that.
func runOf(t *testing.T, file string, replicas int64) *Member {
	t.Helper()
	m := New(nil, "test", "first", Options{File: file})
	m.Keep([]Pool{pool})
	m.of(&hit).replicas.Store(replicas)
	m.remember()
	return m
}

func TestReplicasOverARestart(t *testing.T) {
	t.Run("one that starts without the store takes an equal part of those it knew", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "replicas.json")
		runOf(t, file, 4)
		again := New(nil, "test", "again", Options{File: file})
		again.Keep([]Pool{pool})
		if s, n := again.Share(&hit), again.Replicas(&hit); s != 0.25 || n != 4 {
			t.Errorf("the share is %v of %d replicas", s, n)
		}
	})
	t.Run("a start that ends before it has policies forgets nobody", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "replicas.json")
		runOf(t, file, 4)
		New(nil, "test", "short", Options{File: file}).remember()
		again := New(nil, "test", "again", Options{File: file})
		if diff := cmp.Diff(record{group.String(): 4}, again.recalled); diff != "" {
			t.Errorf("known (-want +got):\n%s", diff)
		}
	})
	t.Run("what the store says then holds", func(t *testing.T) {
		w, members := settled(t, 2)
		file := filepath.Join(t.TempDir(), "replicas.json")
		runOf(t, file, 9)
		again := New(w.client, "test", "again", Options{File: file})
		again.Keep([]Pool{pool})
		beat(t, again, 1)
		if n := again.Replicas(&hit); n != len(members)+1 {
			t.Errorf("there are %d replicas", n)
		}
	})
	t.Run("nothing new is not written", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "replicas.json")
		m := runOf(t, file, 4)
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
		m.remember()
		if _, err := os.Stat(file); err == nil {
			t.Error("it is written again")
		}
	})
	t.Run("a file that makes no sense, or can't be written, is told of once and costs nothing else", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "replicas.json"), 0o700); err != nil {
			t.Fatal(err)
		}
		var logged []string
		m := New(nil, "test", "a", Options{File: filepath.Join(dir, "replicas.json"), Log: logr.New(sink{&logged})})
		m.Keep([]Pool{pool})
		m.remember()
		m.remember()
		want := []string{"ignoring how many replicas there were", "a restart will not know how many replicas there are"}
		if diff := cmp.Diff(want, logged); diff != "" {
			t.Errorf("logged (-want +got):\n%s", diff)
		}
		if s := m.Share(&hit); s != 1 {
			t.Errorf("the share is %v", s)
		}
	})
}
