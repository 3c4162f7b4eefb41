// SPDX-License-Identifier: Apache-2.0

// Package redisclient opens clients of Redis that send nothing twice and don't wait long.
package redisclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// The library's defaults are 5 s each, four tries of it. Callers that have to be quicker say so by their
// context; these bound those that don't.
const (
	dialTimeout = 500 * time.Millisecond
	ioTimeout   = time.Second
)

// Open gives a client of the Redis that the address names:
//
//	redis://[user:password@]host[:port][/database]
//	unix://[user:password@]/path/to/socket[?db=database]
//	redis+sentinel://host:port[/database]?master_name=name[&addr=host:port][&username=user&password=password]
//
// With rediss instead of redis it is TLS. A user and password before the host of a Sentinel are the Sentinel's own.
// The query takes the options of go-redis, like pool_size and read_timeout. Open sends nothing: a Redis that
// isn't there shows in the first call.
func Open(address string) (redis.UniversalClient, error) {
	scheme, rest, _ := strings.Cut(address, "://")
	switch scheme {
	case "redis", "rediss", "unix":
		return open(address)
	case "redis+sentinel":
		return openSentinel("redis://" + rest)
	case "rediss+sentinel":
		return openSentinel("rediss://" + rest)
	}
	return nil, fmt.Errorf("opening Redis: the scheme must be redis, rediss, unix, redis+sentinel or rediss+sentinel, not %q", scheme)
}

func open(address string) (redis.UniversalClient, error) {
	o, err := redis.ParseURL(address)
	if err != nil {
		return nil, fmt.Errorf("opening Redis: %w", withoutURL(err))
	}
	o.MaxRetries = -1
	o.DialerRetries = 1
	o.ContextTimeoutEnabled = true
	o.DialTimeout = cmp.Or(o.DialTimeout, dialTimeout)
	o.ReadTimeout = cmp.Or(o.ReadTimeout, ioTimeout)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, ioTimeout)
	// Both would be commands on each new connection that nobody reads the answer of.
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return redis.NewClient(o), nil
}

func openSentinel(address string) (redis.UniversalClient, error) {
	o, err := redis.ParseFailoverURL(address)
	if err != nil {
		return nil, fmt.Errorf("opening Redis by Sentinel: %w", withoutURL(err))
	}
	if o.MasterName == "" {
		return nil, errors.New("opening Redis by Sentinel: the URL must have a master_name")
	}
	o.MaxRetries = -1
	o.DialerRetries = 1
	o.ContextTimeoutEnabled = true
	o.DialTimeout = cmp.Or(o.DialTimeout, dialTimeout)
	o.ReadTimeout = cmp.Or(o.ReadTimeout, ioTimeout)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, ioTimeout)
	o.DisableIdentity = true
	return redis.NewFailoverClient(o), nil
}

// LogTo has the client library write its own log to log, for debugging only: what matters of it comes back
// as errors. It is for the whole process, and to be called before anything is opened.
func LogTo(log logr.Logger) { redis.SetLogger(debugLog{log.V(1)}) }

type debugLog struct{ logr.Logger }

// Printf is what the library calls.
func (l debugLog) Printf(_ context.Context, format string, args ...any) {
	l.Info("go-redis", "said", fmt.Sprintf(format, args...))
}

// withoutURL leaves the URL out of an error, as it may hold a password.
func withoutURL(err error) error {
	var parsing *url.Error
	if errors.As(err, &parsing) {
		return parsing.Err
	}
	return err
}
