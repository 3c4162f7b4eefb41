// SPDX-License-Identifier: Apache-2.0

package servingcert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"slices"
	"time"
)

// skew is how much later than ours the API server's clock may be set.
const skew = time.Hour

// chain is a certificate and the authority that has signed it, and nothing else: its key is thrown away.
type chain struct {
	ca   *x509.Certificate
	cert tls.Certificate
}

// issue makes a chain for servers of these names, which may be addresses.
func issue(names []string, now time.Time, lifetime time.Duration) (chain, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return chain{}, fmt.Errorf("making a key: %w", err)
	}
	ca, err := sign(&x509.Certificate{
		Subject:               pkix.Name{CommonName: "weir-webhook-ca"},
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}, nil, &caKey.PublicKey, caKey, now, lifetime)
	if err != nil {
		return chain{}, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return chain{}, fmt.Errorf("making a key: %w", err)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "weir-webhook"},
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	leaf, err := sign(template, ca, &key.PublicKey, caKey, now, lifetime)
	if err != nil {
		return chain{}, err
	}
	return chain{ca: ca, cert: tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}}, nil
}

// sign signs a certificate. A nil parent is the certificate itself.
func sign(template, parent *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey, now time.Time, lifetime time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = now.Add(-skew), now.Add(lifetime)
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, fmt.Errorf("signing a certificate: %w", err)
	}
	signed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading back a certificate: %w", err)
	}
	return signed, nil
}

// good says whether those who trust these authorities believe the certificate to be of all these names.
func good(cert *tls.Certificate, cas []*x509.Certificate, names []string, now time.Time) bool {
	return !slices.ContainsFunc(names, func(name string) bool {
		_, err := cert.Leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: pool(cas), CurrentTime: now})
		return err != nil
	})
}

func pool(cas []*x509.Certificate) *x509.CertPool {
	p := x509.NewCertPool()
	for _, ca := range cas {
		p.AddCert(ca)
	}
	return p
}

// authorityOf gives those of the authorities that have signed the certificate.
func authorityOf(cert *tls.Certificate, cas []*x509.Certificate) []*x509.Certificate {
	return slices.DeleteFunc(slices.Clone(cas), func(ca *x509.Certificate) bool { return cert.Leaf.CheckSignatureFrom(ca) != nil })
}

// encodeCAs gives the authorities as PEM, as a caBundle has them.
func encodeCAs(cas []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, ca := range cas {
		_ = pem.Encode(&b, &pem.Block{Type: "CERTIFICATE", Bytes: ca.Raw}) // A buffer takes everything.
	}
	return b.Bytes()
}

func decodeCAs(text []byte) ([]*x509.Certificate, error) {
	var cas []*x509.Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		ca, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading an authority: %w", err)
		}
		cas = append(cas, ca)
	}
	return cas, nil
}

// encodeCert gives a certificate and its key as PEM.
func encodeCert(cert *tls.Certificate) (text, key []byte, err error) {
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		return nil, nil, fmt.Errorf("encoding a key: %w", err)
	}
	text = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Leaf.Raw})
	return text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
