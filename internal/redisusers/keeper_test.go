// SPDX-License-Identifier: Apache-2.0

package redisusers_test

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
	"github.com/weir-dev/weir/internal/redisusers"
	"github.com/weir-dev/weir/test/controlplane"
)

// patience is for what has no stated bound, on a machine that is busy with other things.
const patience = time.Minute

var plane *controlplane.ControlPlane

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	os.Exit(controlplane.Main(m, &plane))
}

func TestKeepersAgreeOnOneSecret(t *testing.T) {
	_, secret := newNamespace(t)
	// The second one may find the Secret missing and then not be the first to create it.
	keepers := []*redisusers.Keeper{keep(t, secret), keep(t, secret)}
	var passwords []string
	for _, k := range keepers {
		passwords = append(passwords, await(t, k))
	}
	if diff := cmp.Diff(passwords[0], passwords[1]); diff != "" {
		t.Errorf("password of the manager's user (-first +second keeper):\n%s", diff)
	}
}

func TestADeletedSecretIsMadeAnew(t *testing.T) {
	c, secret := newNamespace(t)
	k := keep(t, secret)
	first := await(t, k)
	if err := c.Delete(t.Context(), &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: secret.Namespace, Name: secret.Name}}); err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); await(t, k) == first; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the password stays the same")
		}
	}
}

func TestRedisKnowsTheUsersAlone(t *testing.T) {
	c, secret := newNamespace(t)
	k := keep(t, secret)
	await(t, k)
	var stored corev1.Secret
	if err := c.Get(t.Context(), secret, &stored); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "users.acl")
	if err := os.WriteFile(file, stored.Data["users.acl"], 0o600); err != nil {
		t.Fatal(err)
	}
	server := redistest.StartWith(t, "--aclfile", file)

	t.Run("the manager's user logs in", func(t *testing.T) {
		client, err := redisclient.Open(server.URL(), redisclient.LogIn(k.LogIn))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		if err := client.Ping(t.Context()).Err(); err != nil {
			t.Error(err)
		}
	})
	t.Run("the sidecars' user logs in with the files of its Secret", func(t *testing.T) {
		files, err := k.Sidecars()
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		for name, content := range files {
			if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		client, err := redisclient.OpenCounting(server.URL(), redisclient.CredentialsIn(dir))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = client.Close() })
		if err := client.Ping(t.Context()).Err(); err != nil {
			t.Error(err)
		}
	})
	t.Run("whoever doesn't log in may do nothing", func(t *testing.T) {
		err := server.Client(t).Ping(t.Context()).Err()
		if !redis.HasErrorPrefix(err, "NOAUTH") {
			t.Errorf("got %v, want NOAUTH", err)
		}
	})
	t.Run("what Redis reads has no password in it", func(t *testing.T) {
		for _, key := range []string{"manager-password", "sidecar-password"} {
			if password := stored.Data[key]; len(password) < 26 || bytes.Contains(stored.Data["users.acl"], password) {
				t.Errorf("%s has %d bytes, and may be in users.acl", key, len(password))
			}
		}
	})
}

func TestBeforeTheSecretIsReadNobodyLogsIn(t *testing.T) {
	k := redisusers.New(types.NamespacedName{}, logr.Discard())
	if _, _, err := k.LogIn(t.Context()); err == nil {
		t.Error("the manager has a password")
	}
	if _, err := k.Sidecars(); err == nil {
		t.Error("the sidecars have a password")
	}
}

// newNamespace gives a client, and the name of a Secret in a namespace of the test's own.
func newNamespace(t *testing.T) (client.Client, types.NamespacedName) {
	t.Helper()
	c, err := client.New(plane.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "weir-"}}
	if err := c.Create(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	return c, types.NamespacedName{Namespace: ns.Name, Name: "weir-redis-users"}
}

// keep runs a keeper until the test ends.
func keep(t *testing.T, secret types.NamespacedName) *redisusers.Keeper {
	t.Helper()
	mgr, err := ctrl.NewManager(plane.Config, ctrl.Options{Logger: logr.Discard(), Metrics: metricsserver.Options{BindAddress: "0"}})
	if err != nil {
		t.Fatal(err)
	}
	k := redisusers.New(secret, logr.Discard())
	if err := k.SetupWithManager(mgr); err != nil {
		t.Fatal(err)
	}
	controlplane.RunManager(t, mgr)
	return k
}

// await gives the manager's password as soon as a keeper knows it.
func await(t *testing.T, k *redisusers.Keeper) string {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		_, password, err := k.LogIn(t.Context())
		if err == nil {
			return password
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
