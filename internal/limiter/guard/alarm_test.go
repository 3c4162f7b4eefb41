// SPDX-License-Identifier: Apache-2.0

package guard

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestAlarm(t *testing.T) {
	due := time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)
	tests := map[string]struct {
		late time.Duration
		want []bool
	}{
		"an alarm in time ends the call":                           {0, []bool{true}},
		"an alarm a little late ends the call":                     {maxLateness, []bool{true}},
		"an alarm that is late again and again extends four times": {maxLateness + 1, []bool{false, false, false, false, true}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			a := &alarm{due: due, extensions: maxExtensions}
			var got []bool
			for range test.want {
				got = append(got, a.spent(due.Add(test.late)))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("spent (-want +got):\n%s", diff)
			}
		})
	}
}
