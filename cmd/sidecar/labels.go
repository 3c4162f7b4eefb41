// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// readLabels reads a pod's labels from a file of the downward API.
func readLabels(path string) (map[string]string, error) {
	content, err := os.ReadFile(path) //nolint:gosec // The operator names the file.
	if err != nil {
		return nil, fmt.Errorf("reading the pod's labels: %w", err)
	}
	labels, err := parseLabels(string(content))
	if err != nil {
		return nil, fmt.Errorf("reading the pod's labels from %s: %w", path, err)
	}
	return labels, nil
}

// parseLabels parses lines like app="checkout", with Go's escapes in the quotes.
func parseLabels(content string) (map[string]string, error) {
	labels := map[string]string{}
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		key, quoted, _ := strings.Cut(line, "=")
		value, err := strconv.Unquote(quoted)
		if err != nil || key == "" {
			return nil, fmt.Errorf("line %q is not like key=\"value\"", line)
		}
		labels[key] = value
	}
	return labels, nil
}
