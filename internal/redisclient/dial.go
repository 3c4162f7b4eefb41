// SPDX-License-Identifier: Apache-2.0

package redisclient

import (
	"context"
	"net"

	"github.com/redis/go-redis/v9"
)

// undeterred is a hook that keeps failed dials from the client's pool. After as many as it has places the
// pool lets nobody dial, and tries by itself once a second: long for a Redis that restarts in a tenth of that.
type undeterred struct{}

// DialHook is part of [redis.Hook].
func (undeterred) DialHook(next redis.DialHook) redis.DialHook {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := next(ctx, network, address)
		if err != nil {
			return newUnreached(err), nil
		}
		return conn, nil
	}
}

// ProcessHook is part of [redis.Hook].
func (undeterred) ProcessHook(next redis.ProcessHook) redis.ProcessHook { return next }

// ProcessPipelineHook is part of [redis.Hook].
func (undeterred) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

// unreached is a connection that could not be made. Whoever uses it gets to know why.
type unreached struct {
	net.Conn
	err error
}

func newUnreached(err error) net.Conn {
	// All but reading and writing is that of a connection which leads nowhere.
	nowhere, _ := net.Pipe()
	return &unreached{Conn: nowhere, err: err}
}

// Read is part of [net.Conn].
func (u *unreached) Read([]byte) (int, error) { return 0, u.err }

// Write is part of [net.Conn].
func (u *unreached) Write([]byte) (int, error) { return 0, u.err }
