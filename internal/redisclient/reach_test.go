// SPDX-License-Identifier: Apache-2.0

package redisclient_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
)

// TestReach has a server that can be reached in one way only.
func TestReach(t *testing.T) {
	ping := func(t *testing.T, address string) error {
		t.Helper()
		client, err := redisclient.Open(address)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		return client.Ping(t.Context()).Err()
	}
	t.Run("a user with a password is let in, and nobody else", func(t *testing.T) {
		server := redistest.Start(t)
		admin := server.Client(t)
		for _, rule := range [][]any{{"ada", "on", ">secret", "+ping", "~weir:*"}, {"default", "off"}} {
			if err := admin.Do(t.Context(), append([]any{"ACL", "SETUSER"}, rule...)...).Err(); err != nil {
				t.Fatal(err)
			}
		}
		if err := ping(t, "redis://ada:secret@"+server.Addr); err != nil {
			t.Error(err)
		}
		for _, who := range []string{"ada:wrong@", ""} {
			if err := ping(t, "redis://"+who+server.Addr); err == nil {
				t.Errorf("%q was let in", who)
			}
		}
	})
	t.Run("a socket is reached by its path", func(t *testing.T) {
		// Not the test's own folder: the path of a socket has 108 bytes at most.
		dir, err := os.MkdirTemp("", "weir") //nolint:usetesting // Its path is too long.
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		socket := filepath.Join(dir, "redis.sock")
		redistest.StartWith(t, "--unixsocket", socket)
		if err := ping(t, (&url.URL{Scheme: "unix", Path: socket}).String()); err != nil {
			t.Error(err)
		}
	})
	t.Run("TLS is believed only with a certificate of a known authority", func(t *testing.T) {
		cert, key := certificate(t)
		server := redistest.StartWith(t, "--tls-port", "0", "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert, "--tls-auth-clients", "no")
		port := redistest.FreePort(t)
		if err := server.Client(t).ConfigSet(t.Context(), "tls-port", port).Err(); err != nil {
			t.Fatal(err)
		}
		address := "rediss://" + net.JoinHostPort("127.0.0.1", port)
		if err := ping(t, address); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("an unknown certificate got %v", err)
		}
		if err := ping(t, address+"?skip_verify=true"); err != nil {
			t.Error(err)
		}
	})
}

// certificate makes a certificate for 127.0.0.1 that vouches for itself, and gives the files of it and its key.
func certificate(t *testing.T) (certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return write(t, "CERTIFICATE", cert), write(t, "PRIVATE KEY", private)
}

func write(t *testing.T, kind string, content []byte) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "pem")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: content}), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}
