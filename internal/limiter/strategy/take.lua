-- SPDX-License-Identifier: Apache-2.0

-- Decides a batch of requests, one after the other, each by all of its hits. The rules of the strategies
-- stand before this.
--
-- TRY    before this says that no request is to be charged, as others refuse it elsewhere.
-- LEND   before this says that what is charged may have to be given back.
-- KEYS   the counters of the batch, each once.
-- ARGV   for each request how many hits it has, and for each hit: the index of its counter in KEYS, the
--        code of its strategy, 1 if it is a shadow hit or else 0, its cost, the strategy's parameters.
-- Reply  for each hit four numbers: 1 if it is allowed or else 0, what remains, microseconds until it fits
--        (-1 for never), microseconds until there is more. All are 0 for a shadow hit of a refused request.
--        If it lends, then for each hit that is no shadow a receipt: the state that its charge left, or
--        nothing where nothing was charged.
--        Or one number, if the parameters of a hit are not for this time: the time. Then nothing was changed.
--
-- All numbers are integers. A script is not undone when it fails, so everything is computed first, and
-- written last.

-- The clock moves while a script runs: one batch is at one time.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local args = {}
for i = 1, #ARGV do args[i] = tonumber(ARGV[i]) end

-- What is known of each counter: the layout of its state, the state, and a time to live if it is to be written.
local counters = {}

local function read(index)
  local value = redis.call('GET', KEYS[index])
  if not value then return {} end
  return {layout = string.byte(value), state = string.sub(value, 2)}
end

-- Redis runs this text from its start at every call: a rule is made only where a hit needs it.
local rules = {}

local function rule(code)
  if not rules[code] then rules[code] = makers[code]() end
  return rules[code]
end

local function take(at, cost)
  local index, code = args[at], args[at + 1]
  local counter = counters[index]
  if not counter then
    counter = read(index)
    counters[index] = counter
  end
  local state = nil
  if counter.layout == layouts[code] then state = counter.state end
  return rule(code)(state, now, cost, unpack(args, at + 4, at + 3 + widths[code]))
end

local function keep(at, state, ttl)
  if state then
    counters[args[at]] = {layout = layouts[args[at + 1]], state = state, ttl = ttl}
  end
end

local reply, receipts = {}, {}

local function answer(slot, allowed, remaining, retry, reset)
  reply[slot] = allowed and 1 or 0
  reply[slot + 1], reply[slot + 2], reply[slot + 3] = remaining, retry, reset
end

-- Takes the cost from the counter of the hit, whatever the other hits say.
local function charge(at, slot, cost)
  local allowed, remaining, retry, reset, state, ttl = take(at, cost)
  answer(slot, allowed, remaining, retry, reset)
  keep(at, state, ttl)
end

-- Decides the request whose hits start at args[at], and gives where the next request starts.
local function decide(at, hits)
  local first, admitted = #reply + 1, not TRY
  local enforced, shadows = {}, {}
  for i = 1, hits do
    local slot = first + 4 * (i - 1)
    if args[at + 2] == 1 then
      answer(slot, false, 0, 0, 0)
      shadows[#shadows + 1] = {at = at, slot = slot}
    else
      local allowed, remaining, retry, reset, state, ttl = take(at, args[at + 3])
      answer(slot, allowed, remaining, retry, reset)
      enforced[#enforced + 1] = {at = at, slot = slot, allowed = allowed, state = state, ttl = ttl}
      admitted = admitted and allowed
    end
    at = at + 4 + widths[args[at + 1]]
  end
  for _, hit in ipairs(enforced) do
    if admitted or not hit.allowed then
      keep(hit.at, hit.state, hit.ttl)
    else
      -- It would have been charged, had no other limit refused. What remains is all there is.
      charge(hit.at, hit.slot, 0)
    end
    if LEND then receipts[#receipts + 1] = admitted and hit.state or '' end
  end
  if admitted then
    for _, hit in ipairs(shadows) do charge(hit.at, hit.slot, args[hit.at + 3]) end
  end
  return at
end

local at = 1
while at <= #args do
  at = decide(at + 1, args[at])
end

if stale then return {now} end

for i = 1, #KEYS do
  local counter = counters[i]
  if counter and counter.ttl then
    -- Rounded down, a counter could be forgotten before it is full again.
    local ttl = string.format('%.0f', ceil(counter.ttl / 1000))
    redis.call('SET', KEYS[i], string.char(counter.layout) .. counter.state, 'PX', ttl)
  end
end

for _, receipt in ipairs(receipts) do reply[#reply + 1] = receipt end

return reply
