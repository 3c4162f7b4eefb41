// SPDX-License-Identifier: Apache-2.0

package redisclient

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// The files of a folder of credentials.
const (
	fileUsername = "username"
	filePassword = "password"
	// fileCA has the authorities that have signed a Redis's certificate, in PEM.
	fileCA = "ca.crt"
)

// Option is what a client may have beside its address.
type Option func(*use)

// CredentialsIn has each new connection log in with what the files username and password of a folder hold at that
// time, so that both can change under way. A file that isn't there leaves it at what the address says. With rediss, a
// file ca.crt has the authorities that are believed, in place of the machine's.
func CredentialsIn(dir string) Option { return func(u *use) { u.credentials = dir } }

// LogIn has each new connection log in with what f gives at that time, whatever the address says. An error of f is
// that of the connection.
func LogIn(f func(context.Context) (username, password string, err error)) Option {
	return func(u *use) { u.provider = f }
}

// ReadCredentials gives the files of a folder as [CredentialsIn] reads them, by name. The files username and password
// have to be there.
func ReadCredentials(dir string) (map[string][]byte, error) {
	files := map[string][]byte{}
	for _, name := range []string{fileUsername, filePassword, fileCA} {
		text, err := os.ReadFile(filepath.Join(dir, name)) //nolint:gosec // The operator names the folder.
		switch {
		case errors.Is(err, fs.ErrNotExist) && name == fileCA:
			continue
		case err != nil:
			return nil, fmt.Errorf("reading the %s for Redis: %w", name, err)
		case len(text) == 0:
			return nil, fmt.Errorf("reading the %s for Redis: %s is empty", name, filepath.Join(dir, name))
		}
		files[name] = text
	}
	return files, nil
}

func (u use) with(options []Option) use {
	for _, o := range options {
		o(&u)
	}
	return u
}

// logIn gives what go-redis asks for a user and password; nil is the address's own.
func (u use) logIn(username, password string) func(context.Context) (string, string, error) {
	if u.provider != nil || u.credentials == "" {
		return u.provider
	}
	return func(context.Context) (string, string, error) {
		newUsername, errUsername := u.read(fileUsername, username)
		newPassword, errPassword := u.read(filePassword, password)
		return newUsername, newPassword, errors.Join(errUsername, errPassword)
	}
}

// dialer gives what go-redis dials with: as it would by itself, but for the authorities, and for what is read.
func (u use) dialer(config *tls.Config, timeout time.Duration) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		believing, err := u.believing(config)
		if err != nil {
			return nil, err
		}
		conn, err := redis.NewDialer(&redis.Options{TLSConfig: believing, DialTimeout: timeout})(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return vetConn(conn, cmp.Or(u.maxReply, largestReply)), nil
	}
}

// believing gives the config with the authorities that the file has now, if it is there. Without TLS there is none.
func (u use) believing(config *tls.Config) (*tls.Config, error) {
	if u.credentials == "" || config == nil {
		return config, nil
	}
	text, err := u.read(fileCA, "")
	if err != nil || text == "" {
		return config, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(text)) {
		return nil, fmt.Errorf("reading the authorities for Redis: %s has no certificate", fileCA)
	}
	config = config.Clone()
	config.RootCAs = roots
	return config, nil
}

// read reads a file of the folder. A line's end is an editor's doing.
func (u use) read(name, otherwise string) (string, error) {
	text, err := os.ReadFile(filepath.Join(u.credentials, name)) //nolint:gosec // The operator names the folder.
	if errors.Is(err, fs.ErrNotExist) {
		return otherwise, nil
	}
	if err != nil {
		return "", fmt.Errorf("reading the %s for Redis: %w", name, err)
	}
	return strings.TrimRight(string(text), "\r\n"), nil
}
