// SPDX-License-Identifier: Apache-2.0

package redisclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	// reloadInterval is how often a client asks again who has which slots. A node that is gone can't tell, and
	// with the library's minute its slots stay lost for as long.
	reloadInterval = time.Second
	// maxRedirects bounds how often a command follows its slot.
	maxRedirects = 3
	// The library waits this long before it follows. Its own 10 ms would be half of what a decision may take.
	minRedirectWait, maxRedirectWait = time.Millisecond, 4 * time.Millisecond
)

func openCluster(scheme, rest string, u use) (redis.UniversalClient, error) {
	first, others := cutHosts(scheme + "://" + rest)
	if parsed, err := url.Parse(first); err == nil && strings.Trim(parsed.Path, "/0") != "" {
		return nil, errors.New("opening Redis Cluster: a cluster has only the database 0")
	}
	o, err := redis.ParseClusterURL(first)
	if err != nil {
		return nil, fmt.Errorf("opening Redis Cluster: %w", withoutURL(err))
	}
	for _, host := range others {
		if _, _, err := net.SplitHostPort(host); err != nil {
			return nil, fmt.Errorf("opening Redis Cluster: %w", err)
		}
		o.Addrs = append(o.Addrs, host)
	}
	o.MaxRetries = -1
	o.MaxRedirects = maxRedirects
	o.MinRetryBackoff, o.MaxRetryBackoff = minRedirectWait, maxRedirectWait
	o.ClusterStateReloadInterval = reloadInterval
	o.DialerRetries = 1
	o.ContextTimeoutEnabled = u.heedContext
	o.DialTimeout = cmp.Or(o.DialTimeout, dialTimeout)
	o.ReadTimeout = cmp.Or(o.ReadTimeout, u.ioTimeout)
	o.WriteTimeout = cmp.Or(o.WriteTimeout, u.ioTimeout)
	o.PoolSize = cmp.Or(o.PoolSize, u.poolSize)
	o.MaxConcurrentDials = cmp.Or(o.MaxConcurrentDials, u.dials)
	// A replica can be behind, and what it says of a counter or a revision untrue.
	o.ReadOnly, o.RouteByLatency, o.RouteRandomly = false, false, false
	// It would route by what COMMAND tells, which needs a right of its own.
	o.DisableRoutingPolicies = true
	o.DisableIdentity = true
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	o.CredentialsProviderContext = u.logIn(o.Username, o.Password)
	o.Dialer = u.dialer(o.TLSConfig, o.DialTimeout)
	client := redis.NewClusterClient(o)
	client.AddHook(sentOnce{})
	return client, nil
}

// cutHosts gives an address with the first of its hosts alone, and the others.
func cutHosts(address string) (first string, others []string) {
	scheme, rest, _ := strings.Cut(address, "://")
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	start := strings.LastIndex(rest[:end], "@") + 1
	hosts := strings.Split(rest[start:end], ",")
	return scheme + "://" + rest[:start] + hosts[0] + rest[end:], hosts[1:]
}

// sentOnce is a hook that keeps a client of a cluster from sending again what may have been executed. It still
// follows what a node has refused because another one, or none yet, is the slot's.
type sentOnce struct{}

// DialHook is part of [redis.Hook].
func (sentOnce) DialHook(next redis.DialHook) redis.DialHook { return next }

// ProcessHook is part of [redis.Hook].
func (sentOnce) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error { return next(ctx, once{cmd}) }
}

// ProcessPipelineHook is part of [redis.Hook].
func (sentOnce) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		marked := make([]redis.Cmder, len(cmds))
		for i, cmd := range cmds {
			marked[i] = once{cmd}
		}
		return next(ctx, marked)
	}
}

// once is a command that is not sent again after an error of the connection.
type once struct{ redis.Cmder }

// NoRetry is part of [redis.Cmder].
func (once) NoRetry() bool { return true }
