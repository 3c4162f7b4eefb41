// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"errors"
	"fmt"
	"testing"

	"github.com/go-logr/logr/testr"
	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/api/v1alpha1"
)

// reply is an error that Redis gives.
type reply string

func (r reply) Error() string { return string(r) }

func (reply) RedisError() {}

var _ redis.Error = reply("")

func TestOutage(t *testing.T) {
	gone, full := errors.New("gone"), fmt.Errorf("checking: %w", reply("OOM command not allowed"))
	tests := map[string]struct {
		looks, want []error
	}{
		"one that is there is no news":                  {[]error{nil, nil, nil}, nil},
		"a lost packet is no news":                      {[]error{gone, gone, nil, gone, gone, nil}, nil},
		"one that is away is told of once":              {[]error{gone, gone, gone, gone, gone}, []error{gone}},
		"its return is told of once":                    {[]error{gone, gone, gone, nil, nil}, []error{gone, nil}},
		"one that comes to have another reason is news": {[]error{gone, gone, gone, full, full}, []error{gone, full}},
		"so is one that comes back and goes":            {[]error{gone, gone, gone, nil, gone, gone, gone}, []error{gone, nil, gone}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var got []error
			o := outage{log: testr.New(t), tell: func(err error) { got = append(got, err) }}
			for _, err := range test.looks {
				o.note(err)
			}
			if diff := cmp.Diff(fmt.Sprint(test.want), fmt.Sprint(got)); diff != "" {
				t.Errorf("told (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhyTheStoreIsNotReady(t *testing.T) {
	for word, want := range map[string]string{
		"WRONGPASS invalid username-password pair":    v1alpha1.ReasonAuthFailed,
		"NOAUTH Authentication required.":             v1alpha1.ReasonAuthFailed,
		"NOPERM No permissions":                       v1alpha1.ReasonAuthFailed,
		"OOM command not allowed":                     v1alpha1.ReasonStoreFull,
		"READONLY You can't write":                    v1alpha1.ReasonReadOnly,
		"NOREPLICAS Not enough good replicas":         v1alpha1.ReasonReadOnly,
		"MISCONF Redis is configured to save":         v1alpha1.ReasonReadOnly,
		"LOADING Redis is loading the dataset":        v1alpha1.ReasonUnreachable,
		"dial tcp 10.0.0.1:6379: connection refused":  v1alpha1.ReasonUnreachable,
		"CLUSTERDOWN Hash slot not served":            v1alpha1.ReasonUnreachable,
		"BUSY Redis is busy running a script.":        v1alpha1.ReasonUnreachable,
		"MASTERDOWN Link with MASTER is down":         v1alpha1.ReasonUnreachable,
		"ERR max number of clients reached":           v1alpha1.ReasonUnreachable,
		"WRONGTYPE Operation against a key of a kind": v1alpha1.ReasonUnreachable,
	} {
		c := storeReady(view{reportsErr: fmt.Errorf("reading: %w", reply(word))}, tally{})
		if c.Reason != want {
			t.Errorf("%s is %s, not %s", word, c.Reason, want)
		}
	}
}
