// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"net/http"
	"time"
)

// leaveTimeout is how long a pod's end may wait for the sidecar's answer.
const leaveTimeout = 5 * time.Second

// leave tells the sidecar of this pod that the pod is ending. Kubernetes ends the sidecar only after the
// application, when clients that kept their connections have met with failures already.
func leave(ctx context.Context, args []string, stdout io.Writer) error {
	fs := flag.NewFlagSet("weir-sidecar leave", flag.ContinueOnError)
	fs.SetOutput(stdout)
	admin := fs.String("admin-listen", defaultAdminAddress, "`address` that the sidecar was given")
	if err := fs.Parse(args); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+*admin+"/leave", http.NoBody)
	if err != nil {
		return fmt.Errorf("addressing the sidecar: %w", err)
	}
	r.Close = true // It is the only request.
	response, err := http.DefaultClient.Do(r)
	if err != nil {
		return fmt.Errorf("telling the sidecar: %w", err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("telling the sidecar: it answers %s", response.Status)
	}
	return nil
}
