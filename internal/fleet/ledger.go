// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"fmt"
	"time"

	"github.com/redis/go-redis/v9"
)

// whole is a pool, in the unit of grants.
const whole = 1_000_000

// enter enters a replica into the ledger of a pool, and grants it a part.
//
// A replica may not have heard of its last grant. So what is entered is the larger of the new grant and of what it says
// that it holds, and others are granted none of that before it has said that it holds less. A ledger that is new may
// have lost an older one, so for a while nobody is granted more than what they hold: by then all have told.
//
// KEYS[1] by replica, when it is forgotten   KEYS[2] by replica, and as sums under the empty name: what is entered,
// the demand, and the number of the beat; of the sums, since when there is a ledger
// ARGV[1] name   ARGV[2] what it holds   ARGV[3] its demand in thousandths per second   ARGV[4] number of the beat
// ARGV[5] milliseconds of silence after which it is forgotten   ARGV[6] milliseconds for which a ledger is new
// ARGV[7] milliseconds of silence of all after which there is no ledger
// returns the grant, and how many replicas there are; nothing for a beat that comes after a later one
var enter = redis.NewScript(`
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function read(name)
  local entry = redis.call('HGET', KEYS[2], name) or ''
  local a, b, c = string.match(entry, '^(%d+) (%d+) (%d+)$')
  return tonumber(a) or 0, tonumber(b) or 0, tonumber(c) or 0
end
local function write(name, a, b, c)
  redis.call('HSET', KEYS[2], name, string.format('%.0f %.0f %.0f', a, b, c))
end

if redis.call('ZCARD', KEYS[1]) == 0 then
  redis.call('DEL', KEYS[2])
end
local shares, demand, since = read('')
if since == 0 then since = now end
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  local share, asked = read(name)
  shares, demand = shares - share, demand - asked
  redis.call('ZREM', KEYS[1], name)
  redis.call('HDEL', KEYS[2], name)
end

local holds, asks, beat = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local share, asked, last = read(ARGV[1])
if beat <= last then return {} end
shares, demand = shares - share, demand - asked + asks
redis.call('ZADD', KEYS[1], string.format('%.0f', now + ARGV[5]), ARGV[1])
local replicas = redis.call('ZCARD', KEYS[1])
local grant = ` + fmt.Sprint(whole) + ` / replicas
if demand > 0 then
  grant = (grant + ` + fmt.Sprint(whole) + ` * asks / demand) / 2
end
if now < since + ARGV[6] then
  grant = math.min(grant, holds)
end
grant = math.max(0, math.floor(math.min(grant, ` + fmt.Sprint(whole) + ` - shares)))
share = math.max(grant, holds)
write(ARGV[1], share, asks, beat)
write('', shares + share, demand, since)
redis.call('PEXPIRE', KEYS[1], ARGV[7])
redis.call('PEXPIRE', KEYS[2], ARGV[7])
return {grant, replicas}
`)

// beat enters this replica into the ledger of a pool, for as long as life, and notes what the store says.
func (m *Member) beat(ctx context.Context, p Pool, s *standing, life time.Duration) error {
	m.beats++
	said, err := enter.Run(ctx, m.client, m.keys(p), m.name, s.grant.Load(), int64(1000*s.demand), m.beats,
		life.Milliseconds(), m.learning.Milliseconds(), 2*m.term.Milliseconds()).Int64Slice()
	if err != nil {
		return err
	}
	if len(said) == 2 {
		s.grant.Store(said[0])
		s.replicas.Store(said[1])
	}
	return nil
}

// keys gives the keys of a pool's ledger, which are in one slot.
func (m *Member) keys(p Pool) []string {
	name := fmt.Sprintf("weir:%s:{fleet/%s/%s/%s/%s}:", m.instance, p.ID.Namespace, p.ID.Policy, p.ID.Limit, p.Target)
	return []string{name + "silent", name + "shares"}
}
