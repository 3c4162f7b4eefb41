// SPDX-License-Identifier: Apache-2.0

package redisclient

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Option is what a client may have beside its address.
type Option func(*use)

// CredentialsIn has each new connection log in with what the files username and password of a folder hold at that
// time, so that both can change under way. A file that isn't there leaves it at what the address says.
func CredentialsIn(dir string) Option { return func(u *use) { u.credentials = dir } }

func (u use) with(options []Option) use {
	for _, o := range options {
		o(&u)
	}
	return u
}

// logIn gives what go-redis asks for a user and password; nil is the address's own.
func (u use) logIn(username, password string) func(context.Context) (string, string, error) {
	if u.credentials == "" {
		return nil
	}
	return func(context.Context) (string, string, error) {
		newUsername, errUsername := u.read("username", username)
		newPassword, errPassword := u.read("password", password)
		return newUsername, newPassword, errors.Join(errUsername, errPassword)
	}
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
