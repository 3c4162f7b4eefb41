-- SPDX-License-Identifier: Apache-2.0

-- Decides requests that have one hit each, and each its own counter, as take.lua does: nobody's consent is needed, and
-- nobody sees what another has changed. That takes a fifth less time. Before this stand the prelude and the functions
-- rule and open, of the one strategy that all hits are of.
--
-- KEYS     the counters, one for each request.
-- ARGV[1]  the terms, as in take.lua.
-- ARGV[2]  three bytes for each request: how many equal ones it stands for, and the place of its terms, the higher
--          byte first.
-- Reply    as in take.lua.

local KEYS, requests = KEYS, ARGV[2]
local values, changed, admissions, answers = call('MGET', unpack(KEYS)), {}, {}, {}

local takes, costs = {}, {}
for at = 1, #ARGV[1], 8 * WIDTH do
  takes[#takes + 1], costs[#costs + 1] = rule(read('<dddddd', ARGV[1], at + 32)), read('<d', ARGV[1], at + 16)
end

for counter = 1, #KEYS do
  local value, kind, state = values[counter], 0, nil
  expiries[counter] = 0
  if value and #value > HEADER then kind, expiries[counter] = read('<BI5', value) end
  if kind == LAYOUT then
    state = value
  elseif not value then
    state = open(counter)
  end
  local times, high, low = byte(requests, 3 * counter - 2, 3 * counter)
  local term = high * 256 + low + 1
  local new, said
  admissions[counter], state, new, said = takes[term](state, costs[term], times, counter)
  if new then changed[counter] = state end
  answers[counter] = said or state or ''
end

if stale then return {now} end

for counter = 1, #KEYS do
  local state = changed[counter]
  if state then save(counter, state, values[counter] and #values[counter]) end
end

return answer(admissions, answers)
