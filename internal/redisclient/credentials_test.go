// SPDX-License-Identifier: Apache-2.0

package redisclient_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
)

func TestCredentialsChangeUnderWay(t *testing.T) {
	server := redistest.Start(t)
	admin := server.Client(t)
	setUser := func(password string) {
		t.Helper()
		if err := admin.ACLSetUser(t.Context(), "sidecar", "reset", "on", ">"+password, "+ping").Err(); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	write := func(name, content string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	setUser("first")
	write("username", "sidecar\n")
	write("password", "first\n")
	client, err := redisclient.Open(server.URL(), redisclient.CredentialsIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	ping := func() error { return client.Ping(t.Context()).Err() }
	if err := ping(); err != nil {
		t.Fatalf("with the first password: %v", err)
	}

	setUser("second")
	// The last connections are cut, as when the password leaked.
	if err := admin.ClientKillByFilter(t.Context(), "USER", "sidecar").Err(); err != nil {
		t.Fatal(err)
	}
	if err := ping(); err == nil {
		t.Error("the first password is good enough still")
	}
	write("password", "second")
	if err := ping(); err != nil {
		t.Errorf("with the second password: %v", err)
	}
}

func TestWithoutFilesTheAddressHasTheCredentials(t *testing.T) {
	server := redistest.Start(t)
	if err := server.Client(t).ConfigSet(t.Context(), "requirepass", "secret").Err(); err != nil {
		t.Fatal(err)
	}
	client, err := redisclient.Open("redis://:secret@"+server.Addr, redisclient.CredentialsIn(t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	if err := client.Ping(t.Context()).Err(); err != nil {
		t.Error(err)
	}
}
