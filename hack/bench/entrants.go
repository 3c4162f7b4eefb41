// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/throttled/throttled/v2"
	"github.com/throttled/throttled/v2/store/goredisstore.v9"
	ululelimiter "github.com/ulule/limiter/v3"
	ululeredis "github.com/ulule/limiter/v3/drivers/store/redis"

	"github.com/weir-dev/weir/internal/limiter"
	"github.com/weir-dev/weir/internal/limiter/guard"
	"github.com/weir-dev/weir/internal/limiter/redisstore"
	"github.com/weir-dev/weir/internal/redisclient"
	"github.com/weir-dev/weir/internal/redistest"
)

const (
	// All limit alike, as far as they can: so many requests a second for each key, and as many at once.
	requests = 100
	// poolSize is how many connections a limiter may have that needs one for every caller.
	poolSize = 256
	// mostKeys is how many keys an entrant has.
	mostKeys = 10_000
	// budget is how long the sidecar waits for an answer by default.
	budget = 20 * time.Millisecond
)

// decide decides one request.
type decide func(ctx context.Context, key string) (allowed bool, err error)

// entrant is a limiter with keys of its own.
type entrant struct {
	name   string
	decide decide
	keys   []string
}

// contestants are opened in this order, and take turns in it.
var contestants = []struct {
	name string
	open func(ctx context.Context, server *redistest.Server) (decide, error)
}{
	{"weir", openWeir},
	{"weir, no deny cache", openWeirStore},
	{yardstick, openRedisRate},
	{"throttled", openThrottled},
	{"ulule/limiter", openUlule},
	{"script over rueidis", openRueidis},
	{"script over go-redis", openScript},
}

func enter(ctx context.Context, server *redistest.Server) ([]entrant, error) {
	var entrants []entrant
	for i, c := range contestants {
		d, err := c.open(ctx, server)
		if err != nil {
			return nil, fmt.Errorf("opening %s: %w", c.name, err)
		}
		e := entrant{name: c.name, decide: d}
		for n := range mostKeys {
			e.keys = append(e.keys, fmt.Sprintf("weir:bench:{shop/%d}:%016x", i, n))
		}
		entrants = append(entrants, e)
	}
	return entrants, nil
}

func pool(server *redistest.Server) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: server.Addr, PoolSize: poolSize, DisableIdentity: true})
}

// openWeir opens what the sidecar does.
func openWeir(_ context.Context, server *redistest.Server) (decide, error) {
	store, err := weirStore(server)
	if err != nil {
		return nil, err
	}
	return decideIn(guard.DenyCache(store)), nil
}

// openWeirStore leaves out what keeps refusals from Redis, so that every decision is one of Redis.
func openWeirStore(_ context.Context, server *redistest.Server) (decide, error) {
	store, err := weirStore(server)
	if err != nil {
		return nil, err
	}
	return decideIn(store), nil
}

func weirStore(server *redistest.Server) (limiter.Store, error) {
	client, err := redisclient.OpenCounting(server.URL())
	if err != nil {
		return nil, err
	}
	return guard.Breaker(guard.Deadline(redisstore.New(client), budget), redisstore.Unanswered), nil
}

func decideIn(store limiter.Store) decide {
	return decideOn(store, limiter.Limit{Algorithm: limiter.TokenBucket, Requests: requests, Window: time.Second, Burst: requests})
}

func decideOn(store limiter.Store, l limiter.Limit) decide {
	return func(ctx context.Context, key string) (bool, error) {
		verdicts, err := store.Take(ctx, []limiter.Hit{{Key: key, Limit: l, Cost: 1}})
		if err != nil {
			return false, err
		}
		return verdicts[0].Allowed, nil
	}
}

func openRedisRate(_ context.Context, server *redistest.Server) (decide, error) {
	l := redis_rate.NewLimiter(pool(server))
	return func(ctx context.Context, key string) (bool, error) {
		r, err := l.Allow(ctx, key, redis_rate.PerSecond(requests))
		if err != nil {
			return false, err
		}
		return r.Allowed > 0, nil
	}, nil
}

func openThrottled(_ context.Context, server *redistest.Server) (decide, error) {
	store, err := goredisstore.NewCtx(pool(server), "")
	if err != nil {
		return nil, err
	}
	l, err := throttled.NewGCRARateLimiterCtx(store, throttled.RateQuota{MaxRate: throttled.PerSec(requests), MaxBurst: requests - 1})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, key string) (bool, error) {
		limited, _, err := l.RateLimitCtx(ctx, key, 1)
		return !limited, err
	}, nil
}

func openUlule(_ context.Context, server *redistest.Server) (decide, error) {
	store, err := ululeredis.NewStore(pool(server))
	if err != nil {
		return nil, err
	}
	l := ululelimiter.New(store, ululelimiter.Rate{Period: time.Second, Limit: requests})
	return func(ctx context.Context, key string) (bool, error) {
		r, err := l.Get(ctx, key)
		return !r.Reached, err
	}, nil
}

// script is about the least that a limiter can do in one call: a time at which the key will have been idle.
//
// KEYS   the counter.
// ARGV   microseconds from one request to the next, and how many of them may be ahead.
// Reply  1 if the request is allowed, or else 0.
const script = `local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local idle = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0)) + ARGV[1]
if idle - now > ARGV[1] * ARGV[2] then return 0 end
redis.call('SET', KEYS[1], string.format('%.0f', idle), 'PX', math.ceil((idle - now) / 1000))
return 1`

const interval = 1_000_000 / requests

// openScript calls the script once for every request.
func openScript(ctx context.Context, server *redistest.Server) (decide, error) {
	client := pool(server)
	hash, err := client.ScriptLoad(ctx, script).Result()
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, key string) (bool, error) {
		n, err := client.EvalSha(ctx, hash, []string{key}, interval, requests).Int()
		return n == 1, err
	}, nil
}

// openRueidis calls the script once for every request, through a client that pipelines by itself: the way of
// rueidislimiter, which the module proxy doesn't have.
func openRueidis(_ context.Context, server *redistest.Server) (decide, error) {
	client, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{server.Addr}, DisableCache: true})
	if err != nil {
		return nil, err
	}
	s := rueidis.NewLuaScript(script)
	args := []string{fmt.Sprint(interval), fmt.Sprint(requests)}
	return func(ctx context.Context, key string) (bool, error) {
		n, err := s.Exec(ctx, client, []string{key}, args).AsInt64()
		return n == 1, err
	}, nil
}
