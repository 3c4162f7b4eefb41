// SPDX-License-Identifier: Apache-2.0

package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// validity is how long a node can live: longer than any test, and too short to be relied on.
const validity = 30 * 24 * time.Hour

// users are those whom the API server knows by a certificate, and their groups.
var users = map[string]pkix.Name{
	"admin":                   {CommonName: "weir-admin", Organization: []string{"system:masters"}},
	"kube-controller-manager": {CommonName: "system:kube-controller-manager"},
	"kube-scheduler":          {CommonName: "system:kube-scheduler"},
	"kube-proxy":              {CommonName: "system:kube-proxy"},
	"kubelet":                 {CommonName: "system:node:" + Name, Organization: []string{"system:nodes"}},
}

// credential is a certificate and its key, as PEM too.
type credential struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	certPEM     []byte
	keyPEM      []byte
}

// writePKI writes all that proves who is who into the folder that the node sees as /etc/kubernetes:
// certificates and keys in pki, and a kubeconfig for each user.
func writePKI(dir string) error {
	ca, err := newAuthority("weir-node")
	if err != nil {
		return err
	}
	frontProxyCA, err := newAuthority("weir-node-front-proxy")
	if err != nil {
		return err
	}
	server, err := ca.issue(x509.Certificate{
		Subject:     pkix.Name{CommonName: "kube-apiserver"},
		DNSNames:    []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		IPAddresses: []net.IP{net.ParseIP("127.0.0.1"), net.ParseIP(address), net.ParseIP(apiService)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return err
	}
	kubeletClient, err := ca.issue(clientOf(pkix.Name{CommonName: "kube-apiserver", Organization: []string{"system:masters"}}))
	if err != nil {
		return err
	}
	frontProxy, err := frontProxyCA.issue(clientOf(pkix.Name{CommonName: "front-proxy-client"}))
	if err != nil {
		return err
	}
	// Service account tokens are signed with it; no certificate of it is ever shown.
	tokens, err := newAuthority("service-accounts")
	if err != nil {
		return err
	}
	pki := filepath.Join(dir, "pki")
	if err := os.MkdirAll(pki, 0o700); err != nil {
		return fmt.Errorf("making a folder for certificates: %w", err)
	}
	for name, c := range map[string]*credential{
		"ca": ca, "front-proxy-ca": frontProxyCA, "apiserver": server, "apiserver-kubelet-client": kubeletClient,
		"front-proxy-client": frontProxy, "sa": tokens,
	} {
		if err := c.write(filepath.Join(pki, name)); err != nil {
			return err
		}
	}
	for name, subject := range users {
		c, err := ca.issue(clientOf(subject))
		if err != nil {
			return err
		}
		if err := clientcmd.WriteToFile(kubeconfig("https://"+net.JoinHostPort(address, apiPort), ca, c), filepath.Join(dir, name+".kubeconfig")); err != nil {
			return fmt.Errorf("writing the kubeconfig of %s: %w", name, err)
		}
	}
	return nil
}

func clientOf(subject pkix.Name) x509.Certificate {
	return x509.Certificate{Subject: subject, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
}

// newAuthority makes a certificate that signs itself and others.
func newAuthority(name string) (*credential, error) {
	return sign(x509.Certificate{
		Subject:  pkix.Name{CommonName: name},
		IsCA:     true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}, nil)
}

// issue makes a certificate with a key of its own.
func (c *credential) issue(template x509.Certificate) (*credential, error) {
	template.KeyUsage = x509.KeyUsageDigitalSignature
	return sign(template, c)
}

// sign makes a key and a certificate of it. A nil signer is the certificate itself.
func sign(template x509.Certificate, signer *credential) (*credential, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	if template.SerialNumber, err = rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120)); err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	// An hour back, for whoever's clock is behind.
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(validity)
	template.BasicConstraintsValid = true
	if signer == nil {
		signer = &credential{certificate: &template, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, signer.certificate, key.Public(), signer.key)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of %s: %w", template.Subject.CommonName, err)
	}
	c := &credential{key: key, certPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
	if c.certificate, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("reading the certificate of %s back: %w", template.Subject.CommonName, err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encoding the key of %s: %w", template.Subject.CommonName, err)
	}
	c.keyPEM = pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: raw})
	return c, nil
}

// write writes path.crt and path.key.
func (c *credential) write(path string) error {
	for suffix, content := range map[string][]byte{".crt": c.certPEM, ".key": c.keyPEM} {
		if err := os.WriteFile(path+suffix, content, 0o600); err != nil {
			return fmt.Errorf("writing a credential: %w", err)
		}
	}
	return nil
}

// kubeconfig leads a user to an API server.
func kubeconfig(server string, ca, user *credential) clientcmdapi.Config {
	return clientcmdapi.Config{
		Clusters:       map[string]*clientcmdapi.Cluster{Name: {Server: server, CertificateAuthorityData: ca.certPEM}},
		AuthInfos:      map[string]*clientcmdapi.AuthInfo{Name: {ClientCertificateData: user.certPEM, ClientKeyData: user.keyPEM}},
		Contexts:       map[string]*clientcmdapi.Context{Name: {Cluster: Name, AuthInfo: Name}},
		CurrentContext: Name,
	}
}
