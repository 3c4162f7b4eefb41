// SPDX-License-Identifier: Apache-2.0

package servingcert

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"sync"
)

// Files are a certificate that somebody else keeps, like cert-manager: tls.crt, tls.key and ca.crt in a folder, which
// may change. They are safe for concurrent use.
type Files struct {
	dir  string
	name string

	mu   sync.Mutex
	last *tls.Certificate
}

// NewFiles gives the certificate, for a server of this name, that is in a folder.
func NewFiles(dir, name string) *Files { return &Files{dir: dir, name: name} }

// GetCertificate is for [tls.Config]: what the files hold at present, or what they held before if that can't be read.
func (f *Files) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// Connections of API servers are few, and last.
	cert, err := tls.LoadX509KeyPair(filepath.Join(f.dir, keyCert), filepath.Join(f.dir, keyKey))
	if err == nil {
		f.last = &cert
	}
	if f.last == nil {
		return nil, fmt.Errorf("reading the certificate of the webhooks: %w", err)
	}
	return f.last, nil
}

// Ready gives a check that whoever trusts the authorities of the folder can talk to the server at this address.
func (f *Files) Ready(address string) func(*http.Request) error {
	return func(req *http.Request) error {
		text, err := os.ReadFile(filepath.Join(f.dir, keyCAs))
		if err != nil {
			return fmt.Errorf("reading the authorities of the webhooks: %w", err)
		}
		cas, err := decodeCAs(text)
		if err != nil {
			return err
		}
		if len(cas) == 0 {
			return errors.New("reading the authorities of the webhooks: there are none in " + keyCAs)
		}
		return shakeHands(req.Context(), address, f.name, cas)
	}
}
