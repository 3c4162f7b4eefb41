// SPDX-License-Identifier: Apache-2.0

package redisclient_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

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

func TestTheAuthoritiesChangeUnderWay(t *testing.T) {
	old, next := newAuthority(t), newAuthority(t)
	dir := t.TempDir()
	old.sign(t, dir)
	port := redistest.FreePort(t)
	server := redistest.StartWith(t, "--tls-port", port, "--tls-cert-file", filepath.Join(dir, "tls.crt"),
		"--tls-key-file", filepath.Join(dir, "tls.key"), "--tls-auth-clients", "no")
	client, err := redisclient.OpenCounting("rediss://127.0.0.1:"+port, redisclient.CredentialsIn(dir))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = client.Close() })
	believe := func(authorities ...*authority) {
		t.Helper()
		var text []byte
		for _, a := range authorities {
			text = append(text, a.pem...)
		}
		if err := os.WriteFile(filepath.Join(dir, "ca.crt"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		// What is connected stays so. It has to dial again.
		if err := server.Client(t).ClientKillByFilter(t.Context(), "SKIPME", "yes", "TYPE", "normal").Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := client.Ping(t.Context()).Err(); err == nil {
		t.Error("without the file, an authority that nobody knows is believed")
	}
	believe(next)
	if err := client.Ping(t.Context()).Err(); err == nil {
		t.Error("an authority that isn't in the file is believed")
	}
	believe(next, old)
	if err := client.Ping(t.Context()).Err(); err != nil {
		t.Errorf("with the authority in the file: %v", err)
	}
}

func TestCredentialsAreReadWhole(t *testing.T) {
	for name, test := range map[string]struct {
		files map[string]string
		want  map[string][]byte
	}{
		"a user and a password": {
			map[string]string{"username": "u", "password": "p\n"},
			map[string][]byte{"username": []byte("u"), "password": []byte("p\n")},
		},
		"an authority too": {
			map[string]string{"username": "u", "password": "p", "ca.crt": "c", "other": "o"},
			map[string][]byte{"username": []byte("u"), "password": []byte("p"), "ca.crt": []byte("c")},
		},
		"no password":       {map[string]string{"username": "u"}, nil},
		"an empty password": {map[string]string{"username": "u", "password": ""}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for file, content := range test.files {
				if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := redisclient.ReadCredentials(dir)
			if (err != nil) != (test.want == nil) {
				t.Errorf("got error %v", err)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("files (-want +got):\n%s", diff)
			}
		})
	}
}

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: rand.Text()}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	a := &authority{key: key}
	a.cert, a.pem = signed(t, template, template, key, key)
	return a
}

// sign writes tls.crt and tls.key for a server on loopback.
func (a *authority) sign(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	_, cert := signed(t, template, a.cert, key, a.key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"tls.crt": cert, "tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func signed(t *testing.T, template, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) (*x509.Certificate, []byte) {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, parentKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}
