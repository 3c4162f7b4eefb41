// SPDX-License-Identifier: Apache-2.0

package redisclient_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
)

// settings are those that a URL or this package decides.
type settings struct {
	Network, Addr, Username, Password string
	DB, MaxRetries, DialerRetries     int
	Dial, Read, Write                 time.Duration
	TLS, ContextTimeout               bool
}

func TestOpen(t *testing.T) {
	quick := settings{
		Network: "tcp", MaxRetries: 0, DialerRetries: 1, ContextTimeout: true,
		Dial: 500 * time.Millisecond, Read: time.Second, Write: time.Second,
	}
	with := func(change func(*settings)) settings {
		s := quick
		change(&s)
		return s
	}
	tests := map[string]struct {
		url  string
		want settings
	}{
		"a plain URL": {"redis://redis.weir-system:6380/2", with(func(s *settings) {
			s.Addr, s.DB = "redis.weir-system:6380", 2
		})},
		"TLS and a user": {"rediss://ada:secret@redis", with(func(s *settings) {
			s.Addr, s.Username, s.Password, s.TLS = "redis:6379", "ada", "secret", true
		})},
		"a socket": {"unix:///run/redis.sock?db=1", with(func(s *settings) {
			s.Network, s.Addr, s.DB = "unix", "/run/redis.sock", 1
		})},
		"Sentinel": {"redis+sentinel://:other@sentinel:26379/3?master_name=main&password=secret", with(func(s *settings) {
			s.Addr, s.Password, s.DB = "FailoverClient", "secret", 3
		})},
		"Sentinel over TLS": {"rediss+sentinel://sentinel:26379?master_name=main", with(func(s *settings) {
			s.Addr, s.TLS = "FailoverClient", true
		})},
		"a timeout of the user's, but no retries": {"redis://redis?read_timeout=3s&max_retries=5", with(func(s *settings) {
			s.Addr, s.Read = "redis:6379", 3*time.Second
		})},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			client, err := redisclient.Open(test.url)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = client.Close() }()
			o := client.(*redis.Client).Options()
			got := settings{
				Network: o.Network, Addr: o.Addr, Username: o.Username, Password: o.Password, DB: o.DB,
				MaxRetries: o.MaxRetries, DialerRetries: o.DialerRetries, ContextTimeout: o.ContextTimeoutEnabled,
				Dial: o.DialTimeout, Read: o.ReadTimeout, Write: o.WriteTimeout, TLS: o.TLSConfig != nil,
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("settings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	for name, url := range map[string]string{
		"another scheme":              "http://ada:secret@redis",
		"a database of a cluster":     "redis+cluster://ada:secret@redis/2",
		"a cluster's host of no port": "redis+cluster://ada:secret@redis:6379,other",
		"a cluster's bad option":      "redis+cluster://ada:secret@redis?colour=red",
		"a URL that is none":          "redis://ada:secret@redis:port",
		"Sentinel without a master":   "redis+sentinel://ada:secret@redis",
		"an option that is unknown":   "redis://ada:secret@redis?colour=red",
		"nothing, and tells nothing":  "",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := redisclient.Open(url)
			if err == nil {
				t.Fatal("the URL was taken")
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error tells the password: %v", err)
			}
		})
	}
}

func TestOpenTalksToRedis(t *testing.T) {
	client, err := redisclient.Open(redistest.Start(t).URL())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	if err := client.Ping(t.Context()).Err(); err != nil {
		t.Error(err)
	}
}
