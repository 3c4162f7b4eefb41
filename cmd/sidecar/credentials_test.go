// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"

	redisconfig "github.com/weir-dev/weir/internal/configstore/redis"
	"github.com/weir-dev/weir/internal/redistest"
	"github.com/weir-dev/weir/internal/redisusers"
)

func TestThePasswordChangesWithoutARestartOrAWord(t *testing.T) {
	server := redistest.Start(t)
	admin := server.Client(t)
	publisher := redisconfig.NewPublisher(admin, "test", testr.New(t))
	epoch, err := publisher.Claim(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := publisher.Publish(t.Context(), published(epoch)); err != nil {
		t.Fatal(err)
	}
	dir, state := t.TempDir(), t.TempDir()
	writeFile := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	setPassword := func(password string) {
		t.Helper()
		rules := append([]string{"reset", "on", ">" + password}, redisusers.Rights(redisusers.Sidecar)...)
		if err := admin.ACLSetUser(t.Context(), redisusers.Sidecar, rules...).Err(); err != nil {
			t.Fatal(err)
		}
	}
	const first, second = "it-is-Sunday", "it-is-Monday"
	setPassword(first)
	writeFile("username", redisusers.Sidecar)
	writeFile("password", first)
	s := launch(t, hello, append(shop(t, server.URL()), "--redis-credentials", dir, "--state-dir", state, "--log-level", "debug")...)
	logged := func(word string) func() bool {
		return func() bool { return strings.Contains(strings.Join(s.log.all(), ""), word) }
	}
	enforces := func(policy string) func() bool {
		return func() bool { return strings.Contains(s.get(t, s.admin+"/debug/snapshot").Body, `"`+policy+`"`) }
	}

	eventually(t, "the sidecar enforces the policy", enforces("checkout-api"))
	if diff := cmp.Diff(append(repeat(http.StatusOK, 5), http.StatusTooManyRequests), s.statuses(t, 6)); diff != "" {
		t.Errorf("statuses (-want +got):\n%s", diff)
	}
	setPassword(second)
	if err := admin.ClientKillByFilter(t.Context(), "USER", redisusers.Sidecar).Err(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the first password is refused", logged("WRONGPASS"))
	writeFile("password", second)
	next := published(epoch)
	next.Revision.Number++
	next.Policies[1].Name = "checkout-api-2" // Its counter is another.
	if err := publisher.Publish(t.Context(), next); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the sidecar enforces the next policy", enforces("checkout-api-2"))
	eventually(t, "it counts", func() bool { return s.get(t, s.url).Status == http.StatusTooManyRequests })

	t.Run("neither password is anywhere else", func(t *testing.T) {
		said := map[string]string{
			"log":             strings.Join(s.log.all(), ""),
			"/metrics":        s.get(t, s.admin+"/metrics").Body,
			"/debug/snapshot": s.get(t, s.admin+"/debug/snapshot").Body,
		}
		files, err := os.ReadDir(state)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			content, err := os.ReadFile(filepath.Join(state, f.Name()))
			if err != nil {
				t.Fatal(err)
			}
			said[f.Name()] = string(content)
		}
		for where, text := range said {
			if text == "" || strings.Contains(text, first) || strings.Contains(text, second) {
				t.Errorf("%s has %d bytes, and may have a password", where, len(text))
			}
		}
	})
}
