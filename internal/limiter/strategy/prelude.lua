-- SPDX-License-Identifier: Apache-2.0

-- What all scripts and rules need. Before this stand the constants.
--
-- A value is a header, which is a byte for the layout of the state and five for when it expires, and the state.

local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max
local sub, read, write = string.sub, struct.unpack, struct.pack

-- The clock moves while a script runs: one batch is at one time.
local clock = redis.call('TIME')
local second = clock[1] + 0
local now = second * 1000000 + clock[2]

-- A rule whose parameters are of another time sets this.
local stale = false

-- Gives the layout of a state, and when it expires: 0 for nothing that any rule wrote.
local function read_header(value)
  if not value or #value < 6 then return 0, 0 end
  return read('<BI5', value)
end

-- Gives when a state that says something for so many microseconds expires, which is at expiry if that is late enough,
-- and whether it is not. To put the end off takes longer than to write: it is put off further than it has to be, so
-- that it hasn't to be each time.
local function prolong(expiry, ttl)
  if ttl > LONGEST then ttl = LONGEST end
  local due = ceil((now + ceil(ttl) + SLACK) / 1000000)
  if expiry >= due then return expiry, false end
  return due + ceil(min(ttl / 4000000, 60)), true
end

-- Writes a state, and puts its end off to expiry if there is one.
local function write_state(key, state, expiry)
  if type(state) == 'table' then
    state.save(key, expiry - second)
  elseif expiry then
    redis.call('SETEX', key, expiry - second, state)
  else
    redis.call('SET', key, state, 'KEEPTTL')
  end
end

-- Gives when a state of a counter expires that says something for so many microseconds: each rule writes that down.
-- Each script has its own.
local keep
