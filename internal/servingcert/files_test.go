// SPDX-License-Identifier: Apache-2.0

package servingcert

import (
	"crypto/x509"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
)

const served = "weir-webhook.weir-system.svc"

func TestFilesChangeUnderWay(t *testing.T) {
	dir := t.TempDir()
	f := NewFiles(dir, served)
	address := serve(t, f.GetCertificate)
	ready := func() error { return f.Ready(address)((&http.Request{}).WithContext(t.Context())) }

	if err := ready(); err == nil {
		t.Error("it is ready without files")
	}
	if err := testutil.CollectAndCompare(Expiration(f.GetCertificate), strings.NewReader("")); err != nil {
		t.Errorf("without files: %v", err)
	}
	now := time.Now()
	write(t, dir, now)
	if err := ready(); err != nil {
		t.Errorf("with files: %v", err)
	}
	wantExpiration(t, f, now.Add(time.Hour))

	later := now.Add(time.Minute)
	write(t, dir, later)
	if err := ready(); err != nil {
		t.Errorf("with other files: %v", err)
	}
	wantExpiration(t, f, later.Add(time.Hour))

	// Files that are replaced one by one don't fit for a moment.
	if err := os.WriteFile(filepath.Join(dir, "tls.key"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ready(); err != nil {
		t.Errorf("with a key that doesn't fit: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := ready(); err == nil {
		t.Error("it is ready without an authority that somebody could trust")
	}
}

func wantExpiration(t *testing.T, f *Files, at time.Time) {
	t.Helper()
	want := fmt.Sprintf(`# HELP weir_webhook_certificate_expiration_timestamp_seconds When the certificate expires that the webhooks are served with, in seconds since the Unix epoch.
# TYPE weir_webhook_certificate_expiration_timestamp_seconds gauge
weir_webhook_certificate_expiration_timestamp_seconds %d
`, at.Unix())
	if err := testutil.CollectAndCompare(Expiration(f.GetCertificate), strings.NewReader(want)); err != nil {
		t.Error(err)
	}
}

// write writes a certificate that lasts for an hour as cert-manager does.
func write(t *testing.T, dir string, now time.Time) {
	t.Helper()
	c, err := issue([]string{served}, now, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	text, key, err := encodeCert(&c.cert)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"tls.crt": text, "tls.key": key, "ca.crt": encodeCAs([]*x509.Certificate{c.ca})} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
