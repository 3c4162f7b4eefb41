// SPDX-License-Identifier: Apache-2.0

package redis

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	goredis "github.com/redis/go-redis/v9"

	"github.com/weir-dev/weir/internal/configstore"
)

// Numbers travel as text. A double holds milliseconds since 1970 exactly, but Lua would write them with
// an exponent.

// KEYS[1] the claimed epoch
// ARGV[1] the caller's clock, in milliseconds since 1970
// returns the epoch that the caller has now
var claim = goredis.NewScript(`
local stored = tonumber(redis.call('GET', KEYS[1])) or 0
local epoch = string.format('%.0f', math.max(stored + 1, tonumber(ARGV[1])))
redis.call('SET', KEYS[1], epoch)
return epoch
`)

// KEYS[1] the claimed epoch
// KEYS[2] the namespace's snapshot, and its channel
// ARGV[1] the epoch that the caller has claimed
// ARGV[2] the epoch of the snapshot
// ARGV[3] the number of the snapshot
// ARGV[4] the snapshot as JSON
// ARGV[5] milliseconds to keep it, or 0 for always
// returns 'published', 'fenced' or 'stale'
//
// An epoch that isn't stored, or an earlier one, was lost with a flush: the leader restores its own.
var publish = goredis.NewScript(`
local claimed = tonumber(redis.call('GET', KEYS[1])) or 0
if claimed > tonumber(ARGV[1]) then
  return 'fenced'
end
local kind = redis.call('TYPE', KEYS[2]).ok
if kind ~= 'hash' and kind ~= 'none' then
  redis.call('DEL', KEYS[2])
end
local stored = redis.call('HMGET', KEYS[2], 'epoch', 'number', 'body')
local epoch, number = tonumber(stored[1]) or 0, tonumber(stored[2]) or 0
local newer = tonumber(ARGV[2]) - epoch
if newer == 0 then
  newer = tonumber(ARGV[3]) - number
end
if newer < 0 or (newer == 0 and stored[3] ~= ARGV[4]) then
  return 'stale'
end
if claimed < tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], ARGV[1])
end
if newer > 0 then
  redis.call('HSET', KEYS[2], 'epoch', ARGV[2], 'number', ARGV[3], 'body', ARGV[4])
  if ARGV[5] == '0' then
    redis.call('PERSIST', KEYS[2])
  else
    redis.call('PEXPIRE', KEYS[2], ARGV[5])
  end
  redis.call('PUBLISH', KEYS[2], ARGV[2] .. '/' .. ARGV[3])
end
return 'published'
`)

// Publisher is a [configstore.Publisher]. It is safe for concurrent use.
type Publisher struct {
	client   goredis.UniversalClient
	instance string
	log      logr.Logger
	// epoch that Claim gave. Zero before.
	epoch atomic.Int64
}

// NewPublisher gives a publisher for the installation called instance. It logs what it finds stored and
// can't understand.
func NewPublisher(client goredis.UniversalClient, instance string, log logr.Logger) *Publisher {
	return &Publisher{client: client, instance: instance, log: log}
}

// Claim implements [configstore.Publisher]. The epoch is the caller's clock, in milliseconds since 1970,
// unless one as late has been claimed before.
func (p *Publisher) Claim(ctx context.Context) (int64, error) {
	epoch, err := claim.Run(ctx, p.client, []string{epochKey(p.instance)}, time.Now().UnixMilli()).Int64()
	if err != nil {
		return 0, fmt.Errorf("claiming the config store: %w", err)
	}
	p.epoch.Store(epoch)
	return epoch, nil
}

// Publish implements [configstore.Publisher].
func (p *Publisher) Publish(ctx context.Context, s configstore.Snapshot) error {
	if err := p.publish(ctx, s); err != nil {
		return fmt.Errorf("publishing snapshot %s of namespace %s: %w", s.Revision, s.Namespace, err)
	}
	return nil
}

func (p *Publisher) publish(ctx context.Context, s configstore.Snapshot) error {
	claimed := p.epoch.Load()
	if claimed == 0 {
		return configstore.ErrFenced
	}
	if s.Revision.Epoch > claimed {
		return fmt.Errorf("its epoch is later than the claimed one, %d", claimed)
	}
	body, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if len(body) > configstore.MaxBytes {
		return fmt.Errorf("%w: it has %d bytes", configstore.ErrTooLarge, len(body))
	}
	keys := []string{epochKey(p.instance), snapshotKey(p.instance, s.Namespace)}
	answer, err := publish.Run(ctx, p.client, keys, claimed, s.Revision.Epoch, s.Revision.Number, body, keep(s).Milliseconds()).Text()
	if err != nil {
		return err
	}
	return refusals[answer]
}

// emptyKept is how long a snapshot without policies is kept: what is left of a namespace that is gone.
const emptyKept = 24 * time.Hour

// keep is how long to keep a snapshot; 0 is always.
func keep(s configstore.Snapshot) time.Duration {
	if len(s.Policies) == 0 {
		return emptyKept
	}
	return 0
}

// refusals are what the answers of the script publish mean.
var refusals = map[string]error{
	"published": nil,
	"fenced":    configstore.ErrFenced,
	"stale":     configstore.ErrStale,
}

// Load implements [configstore.Publisher].
func (p *Publisher) Load(ctx context.Context, namespaces ...string) (map[string]configstore.Snapshot, error) {
	stored, err := p.fields(ctx, namespaces, fieldEpoch, fieldNumber, fieldBody)
	if err != nil {
		return nil, fmt.Errorf("loading snapshots: %w", err)
	}
	return understood(p.log, stored, snapshot), nil
}

// Revisions implements [configstore.Publisher].
func (p *Publisher) Revisions(ctx context.Context, namespaces ...string) (map[string]configstore.Revision, error) {
	stored, err := p.fields(ctx, namespaces, fieldEpoch, fieldNumber)
	if err != nil {
		return nil, fmt.Errorf("loading revisions: %w", err)
	}
	read := func(_ string, fields []any) (configstore.Revision, error) { return revision(fields) }
	return understood(p.log, stored, read), nil
}

// fields reads these fields of each namespace's snapshot, in one round trip.
func (p *Publisher) fields(ctx context.Context, namespaces []string, names ...string) (map[string][]any, error) {
	replies := make(map[string]*goredis.SliceCmd, len(namespaces))
	_, err := p.client.Pipelined(ctx, func(pipe goredis.Pipeliner) error {
		for _, n := range namespaces {
			replies[n] = pipe.HMGet(ctx, snapshotKey(p.instance, n), names...)
		}
		return nil
	})
	fields := make(map[string][]any, len(replies))
	for n, reply := range replies {
		switch {
		case reply.Err() == nil:
			fields[n] = reply.Val()
		case goredis.HasErrorPrefix(reply.Err(), "WRONGTYPE"):
			// It is about this key alone, which holds something else: as good as nothing.
			p.log.Error(reply.Err(), "ignoring a stored snapshot", "namespace", n)
		default:
			return nil, err
		}
	}
	return fields, nil
}

// understood reads what is stored of each namespace. It leaves out what it can't understand, since the
// leader can make that anew, and must not be kept from its work by it.
func understood[T any](log logr.Logger, stored map[string][]any, read func(namespace string, fields []any) (T, error)) map[string]T {
	values := make(map[string]T, len(stored))
	for n, fields := range stored {
		v, err := read(n, fields)
		if err == nil {
			values[n] = v
		} else if !errors.Is(err, errAbsent) {
			log.Error(err, "ignoring a stored snapshot", "namespace", n)
		}
	}
	return values
}
