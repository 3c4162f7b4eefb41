-- SPDX-License-Identifier: Apache-2.0

-- Gives back what a request was lent. The rules of the strategies stand before this.
--
-- KEYS   the counters, each once.
-- ARGV   for each counter: the code of its strategy, the cost, the receipt, the strategy's parameters.
--
-- A counter that is gone, or whose state has had another layout since, gets nothing: it owes nothing either.
-- A script is not undone when it fails, so everything is computed first, and written last.

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]

local states, ttls = {}, {}
local at = 1
for i = 1, #KEYS do
  local code = tonumber(ARGV[at])
  local params = {}
  for j = 1, widths[code] do params[j] = tonumber(ARGV[at + 2 + j]) end
  local value = redis.call('GET', KEYS[i])
  if value and string.byte(value) == layouts[code] then
    local cost, receipt = tonumber(ARGV[at + 1]), ARGV[at + 2]
    local state, ttl = givers[code](string.sub(value, 2), now, cost, receipt, unpack(params))
    if state then states[i], ttls[i] = string.char(layouts[code]) .. state, ttl end
  end
  at = at + 3 + widths[code]
end

for i, state in pairs(states) do
  redis.call('SET', KEYS[i], state, 'PX', string.format('%.0f', ceil(ttls[i] / 1000)))
end
return 'OK'
