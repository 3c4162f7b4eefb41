// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"io"
	"strings"
	"testing"
)

func TestBadFlagsAreToldByName(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"no Redis":           {nil, "--redis"},
		"an unknown flag":    {[]string{"--redis", "redis://r", "--rediss"}, "-rediss"},
		"a bad level":        {[]string{"--redis", "redis://r", "--log-level", "loud"}, "-log-level"},
		"a stray argument":   {[]string{"--redis", "redis://r", "up"}, `"up"`},
		"a bad Redis URL":    {[]string{"--redis", "http://r"}, "--redis"},
		"a bad config Redis": {[]string{"--redis", "redis://r", "--config-redis", "r:6379"}, "--config-redis"},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), test.args, io.Discard)
			if !errors.As(err, new(usageError)) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("want a usage error about %s, got %v", test.want, err)
			}
		})
	}
}

func TestHelpIsNoFailure(t *testing.T) {
	var help strings.Builder
	if err := run(t.Context(), []string{"-h"}, &help); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("got %v, want %v", err, flag.ErrHelp)
	}
	if !strings.Contains(help.String(), "-redis") {
		t.Errorf("the help does not name the flags:\n%s", help.String())
	}
}
