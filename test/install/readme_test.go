// SPDX-License-Identifier: Apache-2.0

package install_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

func TestTheReadmeTellsEveryValueAndItsDefault(t *testing.T) {
	chart := filepath.Join(root, "charts", "weir")
	text, err := os.ReadFile(filepath.Join(chart, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	told := map[string]string{}
	for _, row := range regexp.MustCompile("(?m)^\\| `([^`]+)` \\| `([^`]+)` \\|").FindAllStringSubmatch(string(text), -1) {
		told[row[1]] = row[2]
	}
	raw, err := os.ReadFile(filepath.Join(chart, "values.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var values map[string]any
	if err := yaml.Unmarshal(raw, &values); err != nil {
		t.Fatal(err)
	}
	defaults := map[string]string{}
	flatten(t, defaults, "", values)
	if diff := cmp.Diff(defaults, told); diff != "" {
		t.Errorf("defaults (-values.yaml +README.md):\n%s", diff)
	}
}

// flatten adds every value under a path. What Kubernetes knows the parts of is one value.
func flatten(t *testing.T, into map[string]string, path string, value any) {
	t.Helper()
	parts, ok := value.(map[string]any)
	if !ok || len(parts) == 0 || strings.HasSuffix(strings.ToLower(path), "resources") {
		text, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		into[path] = string(text)
		return
	}
	for name, part := range parts {
		flatten(t, into, strings.TrimPrefix(path+"."+name, "."), part)
	}
}
