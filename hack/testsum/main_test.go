// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const (
	oneOfEach = `{"Action":"run","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Test":"TestA","Output":"said by A\n"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":2.5}
{"Action":"output","Package":"p","Test":"TestB","Output":"said by B\n"}
{"Action":"fail","Package":"p","Test":"TestB","Elapsed":0.1}
{"Action":"output","Package":"p","Test":"TestC","Output":"said by C\n"}
{"Action":"skip","Package":"p","Test":"TestC","Elapsed":0}
{"Action":"output","Package":"p","Output":"FAIL\n"}
{"Action":"fail","Package":"p","Elapsed":2.75}
`
	allPassed = `{"Action":"pass","Package":"p","Test":"TestA/a claim","Elapsed":0}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0}
{"Action":"pass","Package":"p","Elapsed":0.5}
{"Action":"skip","Package":"without/tests","Elapsed":0}
`
	measured = `{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:40: K14 (API server): expected 0 of 2000 failed: none, measured 0\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:41: it was expected, and measured\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:42: R2: expected: at most 40; measured: 15\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a_test.go:43: expected: 1000; measured: 1000\n"}
{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0}
{"Action":"pass","Package":"p","Elapsed":0.5}
`
	skipped = `{"Action":"pass","Package":"p","Test":"TestA","Elapsed":0}
{"Action":"skip","Package":"p","Test":"TestB","Elapsed":0}
{"Action":"pass","Package":"p","Elapsed":0.5}
`
	notBuilt = `{"ImportPath":"p [p.test]","Action":"build-output","Output":"p.go:3: undefined: x\n"}
{"ImportPath":"p [p.test]","Action":"build-fail"}
{"Action":"output","Package":"p","Output":"FAIL\tp [build failed]\n"}
{"Action":"fail","Package":"p","Elapsed":0,"FailedBuild":"p [p.test]"}
`
)

func TestRun(t *testing.T) {
	tests := []struct {
		name, events, out, err string
	}{
		{
			name:   "failed and skipped tests are told of in full, passed ones only when slow",
			events: oneOfEach,
			out: `
FAILED p TestB
said by B


SKIPPED p TestC
said by C

FAIL   p 2.8s
slow   p TestA 2.5s
unit: 1 passed, 1 failed, 1 skipped
`,
			err: "a test failed",
		},
		{
			name:   "subtests count, packages without tests don't",
			events: allPassed,
			out:    "ok     p 0.5s\nunit: 2 passed, 0 failed, 0 skipped\n",
		},
		{
			name:   "what tests measure is told",
			events: measured,
			out: "ok     p 0.5s\ncase   K14 (API server): expected 0 of 2000 failed: none, measured 0\n" +
				"case   R2: expected: at most 40; measured: 15\ncase   TestA: expected: 1000; measured: 1000\nunit: 1 passed, 0 failed, 0 skipped\n",
		},
		{
			name:   "a skipped test fails the run",
			events: skipped,
			out:    "\nSKIPPED p TestB\n\nok     p 0.5s\nunit: 1 passed, 0 failed, 1 skipped\n",
			err:    "a test was skipped, which counts as a failure here",
		},
		{
			name:   "a package that doesn't build counts as one failure",
			events: notBuilt,
			out:    "FAIL   p 0.0s\np.go:3: undefined: x\nFAIL\tp [build failed]\n\nunit: 0 passed, 1 failed, 0 skipped\n",
			err:    "a test failed",
		},
		{
			name: "a run without tests fails",
			out:  "unit: 0 passed, 0 failed, 0 skipped\n",
			err:  "no test ran",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			err := run([]string{"unit"}, strings.NewReader(tt.events), &out)
			if diff := cmp.Diff(tt.out, out.String()); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.err, text(err)); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTotalSumsOverRuns(t *testing.T) {
	dir := t.TempDir()
	unit, e2e := filepath.Join(dir, "unit.json"), filepath.Join(dir, "e2e.json")
	for path, events := range map[string]string{unit: oneOfEach, e2e: allPassed} {
		if err := os.WriteFile(path, []byte(events), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	err := run([]string{"-total", unit, e2e}, strings.NewReader(""), &out)
	if diff := cmp.Diff("3 passed, 1 failed, 1 skipped\n", out.String()); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("a test failed", text(err)); diff != "" {
		t.Errorf("error (-want +got):\n%s", diff)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
