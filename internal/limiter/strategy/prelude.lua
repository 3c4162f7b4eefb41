-- SPDX-License-Identifier: Apache-2.0

-- What all scripts and rules need. Before this stand the constants.
--
-- A value is a header, which is a byte for the layout of the state and five for when it expires, and the state.

local floor, ceil, min, max = math.floor, math.ceil, math.min, math.max
local byte, sub, read, write = string.byte, string.sub, struct.unpack, struct.pack
local call = redis.call

-- The clock moves while a script runs: one batch is at one time.
local clock = call('TIME')
local second = clock[1] + 0
local now = second * 1000000 + clock[2]

-- A rule whose parameters are of another time sets this.
local stale = false

-- By counter: when its state expires, and whether that is later than its key does.
local expiries, extended = {}, {}

-- Gives when a state expires that says something for so many microseconds: each rule writes that down. To put the end
-- off takes longer than to write. So it is put off by up to a minute more than it has to be, and not each time.
local function keep(counter, ttl)
  if ttl > LONGEST then ttl = LONGEST end
  local due = now + ttl + SLACK
  due = (due - due % 1000000) / 1000000 + 1
  if expiries[counter] < due then
    expiries[counter], extended[counter] = due + ceil(min(ttl / 4000000, 60)), true
  end
  return expiries[counter]
end

-- Writes the new state of a counter, whose value had the size. A state that is no string knows how.
local function save(counter, state, size)
  if type(state) == 'table' then
    state:save(counter)
  elseif extended[counter] then
    call('SETEX', KEYS[counter], expiries[counter] - second, state)
  elseif #state == size then
    -- In place: it takes half the time of SET.
    call('SETRANGE', KEYS[counter], '0', state)
  else
    call('SET', KEYS[counter], state, 'KEEPTTL')
  end
end

-- Gives a reply: what each hit admits, and what its verdicts are to be told from. Texts of one size are joined: to read
-- one long text takes less time than to read many.
local function answer(admissions, said)
  local admitted, size = string.char(unpack(admissions)), said[1] and #said[1]
  for i = 2, #said do
    if #said[i] ~= size then return {now, admitted, unpack(said)} end
  end
  return {now, admitted, table.concat(said)}
end
