// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/weir-dev/weir/internal/redirect"
)

// redirectTo is what an init container runs before the sidecar, and with a capability that the sidecar doesn't have.
func redirectTo(args []string, stdout io.Writer) error {
	if len(args) == 0 {
		return usageError{errors.New("redirect: name ports, like 8080:15101")}
	}
	var ports []redirect.Port
	for _, a := range args {
		p, err := redirect.ParsePort(a)
		if err != nil {
			return usageError{fmt.Errorf("redirect: %w", err)}
		}
		ports = append(ports, p)
	}
	if err := redirect.Install(ports); err != nil {
		return err
	}
	for _, p := range ports {
		fmt.Fprintf(stdout, "connections to port %d go to %d\n", p.From, p.To)
	}
	return nil
}
