// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/client-go/tools/clientcmd"
)

func TestPKI(t *testing.T) {
	dir := t.TempDir()
	if err := writePKI(dir); err != nil {
		t.Fatal(err)
	}
	ca, err := os.ReadFile(filepath.Join(dir, "pki", "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)

	t.Run("the API server's certificate is good for all of its names", func(t *testing.T) {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "pki", "apiserver.crt"), filepath.Join(dir, "pki", "apiserver.key"))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"127.0.0.1", "10.89.0.1", "10.96.0.1", "kubernetes.default.svc"} {
			if _, err := pair.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("every user is whom RBAC knows", func(t *testing.T) {
		got := map[string][]string{}
		for name := range users {
			config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, name+".kubeconfig"))
			if err != nil {
				t.Fatal(err)
			}
			pair, err := tls.X509KeyPair(config.CertData, config.KeyData)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
				t.Error(err)
			}
			got[pair.Leaf.Subject.CommonName] = pair.Leaf.Subject.Organization
		}
		want := map[string][]string{
			"weir-admin":                     {"system:masters"},
			"system:kube-controller-manager": nil,
			"system:kube-scheduler":          nil,
			"system:kube-proxy":              nil,
			"system:node:node":               {"system:nodes"},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("users (-want +got):\n%s", diff)
		}
	})
}
