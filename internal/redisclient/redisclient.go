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

// dialTimeout bounds the one attempt to connect. The library's default is 5 s, five times.
const dialTimeout = 500 * time.Millisecond

// use is what a client is for.
type use struct {
	// heedContext has the deadline of a call's context end it, and close its connection.
	heedContext bool
	// ioTimeout bounds the wait for an answer. The library's default is 5 s, four times.
	ioTimeout time.Duration
	// poolSize and dials are how many connections there are at most, and how many are dialed at once. 0 is
	// the library's choice.
	poolSize, dials int
	// credentials is the folder of the user and password. Empty is what the address says of them.
	credentials string
	// provider gives the user and password instead. Nil is nobody.
	provider func(context.Context) (username, password string, err error)
	// maxReply is the most bytes that a reply may have. 0 is largestReply.
	maxReply int64
	// pace is what the client's dials are bound to. Nil is nothing.
	pace *Pace
}

var (
	anything = use{heedContext: true, ioTimeout: time.Second}
	counting = use{ioTimeout: 500 * time.Millisecond, poolSize: 8, dials: 4}
)

// Open gives a client of the Redis that the address names:
//
//	redis://[user:password@]host[:port][/database]
//	unix://[user:password@]/path/to/socket[?db=database]
//	redis+sentinel://host:port[/database]?master_name=name[&addr=host:port][&username=user&password=password]
//	redis+cluster://[user:password@]host:port[,host:port...][?addr=host:port]
//
// The hosts of a cluster are those to ask for the others. With rediss instead of redis it is TLS. A user and password before the host of a Sentinel are the Sentinel's own.
// The query takes the options of go-redis, like pool_size and read_timeout. Open sends nothing: a Redis that
// isn't there shows in the first call.
func Open(address string, options ...Option) (redis.UniversalClient, error) {
	u := anything.with(options)
	client, err := open(address, u)
	if err != nil {
		return nil, err
	}
	u.hook(client)
	return client, nil
}

// OpenCounting is [Open] for a few calls at a time, made by who doesn't have to wait for them: whatever its
// context says, a call ends when Redis has not answered for half a second. So a Redis that is back after a pause
// finds its connections as it left them. And one that is back after it was gone is dialed by the first call;
// other clients wait for up to a second then.
func OpenCounting(address string, options ...Option) (redis.UniversalClient, error) {
	u := counting.with(options)
	client, err := open(address, u)
	if err != nil {
		return nil, err
	}
	u.hook(client, undeterred{})
	return client, nil
}

// hook adds hooks to the client of each server, and to those that of the pace: what it refuses has failed to the
// others.
func (u use) hook(client redis.UniversalClient, hooks ...redis.Hook) {
	add := func(server *redis.Client) {
		for _, h := range hooks {
			server.AddHook(h)
		}
		if u.pace != nil {
			server.AddHook(u.pace.of(server.Options().Addr))
		}
	}
	switch c := client.(type) {
	case *redis.ClusterClient:
		c.OnNewNode(add)
	case *redis.Client:
		add(c)
	}
}

func open(address string, u use) (redis.UniversalClient, error) {
	scheme, rest, _ := strings.Cut(address, "://")
	switch scheme {
	case "redis", "rediss", "unix":
		return openSingle(address, u)
	case "redis+sentinel":
		return openSentinel("redis://"+rest, u)
	case "rediss+sentinel":
		return openSentinel("rediss://"+rest, u)
	case "redis+cluster":
		return openCluster("redis", rest, u)
	case "rediss+cluster":
		return openCluster("rediss", rest, u)
	}
	return nil, fmt.Errorf("opening Redis: the scheme must be redis, rediss or unix, or one of redis and rediss with +sentinel or +cluster, not %q", scheme)
}

func openSingle(address string, u use) (redis.UniversalClient, error) {
	o, err := redis.ParseURL(address)
	if err != nil {
		return nil, fmt.Errorf("opening Redis: %w", withoutURL(err))
	}
	o.MaxRetries = -1
	o.DialerRetries = 1
	o.ContextTimeoutEnabled = u.heedContext
	o.DialTimeout = cmp.Or(o.DialTimeout, dialTimeout)
	o.ReadTimeout = cmp.Or(o.ReadTimeout, u.ioTimeout)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, u.ioTimeout)
	o.PoolSize = cmp.Or(o.PoolSize, u.poolSize)
	o.MaxConcurrentDials = cmp.Or(o.MaxConcurrentDials, u.dials)
	// Both would be commands on each new connection that nobody reads the answer of.
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	o.CredentialsProviderContext = u.logIn(o.Username, o.Password)
	o.Dialer = u.dialer(o.TLSConfig, o.DialTimeout)
	return redis.NewClient(o), nil
}

func openSentinel(address string, u use) (redis.UniversalClient, error) {
	o, err := redis.ParseFailoverURL(address)
	if err != nil {
		return nil, fmt.Errorf("opening Redis by Sentinel: %w", withoutURL(err))
	}
	if o.MasterName == "" {
		return nil, errors.New("opening Redis by Sentinel: the URL must have a master_name")
	}
	o.MaxRetries = -1
	o.DialerRetries = 1
	o.ContextTimeoutEnabled = u.heedContext
	o.DialTimeout = cmp.Or(o.DialTimeout, dialTimeout)
	o.ReadTimeout = cmp.Or(o.ReadTimeout, u.ioTimeout)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, u.ioTimeout)
	o.PoolSize = cmp.Or(o.PoolSize, u.poolSize)
	o.MaxConcurrentDials = cmp.Or(o.MaxConcurrentDials, u.dials)
	o.DisableIdentity = true
	o.CredentialsProviderContext = u.logIn(o.Username, o.Password)
	o.Dialer = u.dialer(o.TLSConfig, o.DialTimeout)
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
