// SPDX-License-Identifier: Apache-2.0

package playground

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
)

// Sidecar is an enforcer in front of an application. At each start it gets other ports: any that were chosen
// before it listens could be taken by then.
type Sidecar struct {
	*Process
	// URL is where clients send their requests.
	URL string
	// Admin is where its metrics and its snapshot are.
	Admin string
}

// NewSidecar gives a sidecar in front of the application at a URL, which has not started yet. The flags say where
// its policies come from, and where it counts. The caller must Stop it.
func NewSidecar(o Options, name, application string, flags ...string) *Sidecar {
	all := append([]string{
		"--listen", "http=127.0.0.1:0", "--upstream", "http=" + application, "--admin-listen", "127.0.0.1:0", "--drain-delay", "0s",
		// A machine that is busy with other things must not look like a Redis that is away.
		"--decision-timeout", "1s",
	}, flags...)
	env := []string{"POD_NAME=" + name, "POD_UID=" + name}
	return &Sidecar{Process: newProcess(o.Dir, name, filepath.Join(o.Binaries, "weir-sidecar"), all, env)}
}

// Start starts the sidecar and waits until it is ready.
func (s *Sidecar) Start(ctx context.Context) error {
	earlier, _ := os.ReadFile(s.Log) // There is none before the first start.
	s.URL, s.Admin = "", ""
	if err := s.Process.Start(); err != nil {
		return err
	}
	return await(ctx, s.Process, func(ctx context.Context) bool {
		return s.locate(len(earlier)) && ok(ctx, s.Admin+"/readyz")
	})
}

// locate reads where the sidecar listens from its log, of which so much is of earlier starts. It is false until the
// log tells.
func (s *Sidecar) locate(earlier int) bool {
	log, err := os.ReadFile(s.Log)
	if err != nil {
		return false
	}
	for line := range bytes.Lines(log[earlier:]) {
		var l struct{ Msg, Listener, Address string }
		switch err := json.Unmarshal(line, &l); {
		case err != nil || l.Msg != "listening":
		case l.Listener == "admin":
			s.Admin = "http://" + l.Address
		default:
			s.URL = "http://" + l.Address
		}
	}
	return s.URL != "" && s.Admin != ""
}
