-- SPDX-License-Identifier: Apache-2.0

-- Decides a batch of requests, one after the other, each by all of its hits. Before this stand the prelude and the
-- functions rule, which makes what takes from a counter, amendment, which makes what changes a charge afterwards, and
-- open, which gives a state that is no string.
--
-- KEYS     the counters of the batch, each once.
-- ARGV[1]  the terms on which they are hit, each once: WIDTH doubles, which are the code of the strategy, the
--          layout of its states, the cost, 1 for a shadow hit or else 0, and the strategy's parameters.
-- ARGV[2]  the requests, as bytes and pairs of bytes, the higher one first. Each is one byte for its mode, one for
--          how many equal requests it stands for, a pair for the number of its hits, and for each hit a pair
--          for its counter and a pair for its terms, both counted from 0. In the modes REFUND and RENEW there is
--          one hit, and the receipt of its charge follows as a double.
-- Reply    the time, in microseconds since the Unix epoch; as a byte for each hit of the modes TAKE and TRY, how many
--          of the equal requests it would admit; and for each of these hits what the verdicts are to be told from:
--          the counter's value, if the rule gives nothing else. Texts of one size are one text. The time alone, if
--          parameters are of another time: then nothing was changed.
--
-- Where all hits count one request more, but those that are shadows, it is charged to all. TRY charges nothing.
-- A script is not undone when it fails, so everything is computed first, and written last.

-- What each counter holds, the size of that in Redis, its layout, and whether it is to be written.
local values, sizes, kinds, changed = call('MGET', unpack(KEYS)), {}, {}, {}
for counter = 1, #KEYS do
  local value = values[counter]
  kinds[counter], expiries[counter], sizes[counter] = 0, 0, value and #value
  if value and #value > HEADER then kinds[counter], expiries[counter] = read('<BI5', value) end
end

local terms = {read('<' .. string.rep('d', #ARGV[1] / 8), ARGV[1])}
local requests = ARGV[2]
local rules = {}
-- Of each hit its answer, and until then the counter that it hits, its terms, whether it is a shadow, and the counter's
-- next value.
local admissions, answers, size = {}, {}, 0
local counters, firsts, shadows, states, news = {}, {}, {}, {}, {}

-- Gives the state of a counter as far as the terms can read it.
local function load(counter, first)
  local layout = terms[first + 1]
  if kinds[counter] == layout then return values[counter] end
  if values[counter] then return nil end
  local state = open(terms[first], counter)
  if state then values[counter], kinds[counter] = state, layout end
  return state
end

local function store(counter, first, state)
  values[counter], kinds[counter], changed[counter] = state, terms[first + 1], true
end

local function ruleOf(first)
  local take = rule(terms[first], unpack(terms, first + 4, first + WIDTH - 1))
  rules[first] = take
  return take
end

-- Has so many equal requests take from a counter, and gives how many of them it admits and their state.
local function evaluate(counter, first, times)
  local take = rules[first] or ruleOf(first)
  return take(load(counter, first), terms[first + 2], times, counter)
end

-- Has the shadow hits among these, or the others, take from their counters. The least that any of them admits is what
-- they are charged for.
local function takeTogether(from, to, times, shadow, most)
  local admitted = most
  for hit = from, to do
    if shadows[hit] == shadow then
      local admits, state, new, said = evaluate(counters[hit], firsts[hit], times)
      admissions[hit], answers[hit], states[hit], news[hit] = admits, said or state or '', state, new
      if not shadow and admits < admitted then admitted = admits end
    end
  end
  for hit = from, to do
    if shadows[hit] == shadow then
      if not shadow and admissions[hit] > admitted then
        local _, state, new, said = evaluate(counters[hit], firsts[hit], admitted)
        answers[hit], states[hit], news[hit] = said or state or '', state, new
      end
      if news[hit] then store(counters[hit], firsts[hit], states[hit]) end
    end
  end
  return admitted
end

local function takeAll(at, number, times, most)
  local from, any = size + 1, false
  size = size + number
  for hit = from, size do
    local c1, c2, t1, t2 = byte(requests, at, at + 3)
    local first = (t1 * 256 + t2) * WIDTH + 1
    local shadow = terms[first + 3] == 1
    counters[hit], firsts[hit], shadows[hit] = c1 * 256 + c2 + 1, first, shadow
    if shadow then any, admissions[hit], answers[hit] = true, 0, '' end
    at = at + 4
  end
  local admitted = takeTogether(from, size, times, false, most)
  if any and admitted > 0 then takeTogether(from, size, admitted, true, admitted) end
end

-- Refunds or renews a charge. What is gone owes nothing, and what another strategy has written can't be told.
local function amend(counter, first, receipt, renew)
  local state = load(counter, first)
  if not state then return end
  local change = amendment(terms[first], unpack(terms, first + 4, first + WIDTH - 1))
  local next = change(state, terms[first + 2], receipt, renew, counter)
  if next then store(counter, first, next) end
end

local at, last = 1, #requests
while at <= last do
  local mode, times, n1, n2, c1, c2, t1, t2 = byte(requests, at, at + 7)
  local number, counter, first = n1 * 256 + n2, c1 * 256 + c2 + 1, (t1 * 256 + t2) * WIDTH + 1
  if mode == REFUND or mode == RENEW then
    amend(counter, first, read('<d', requests, at + 8), mode == RENEW)
    at = at + 16
  else
    if mode == TAKE and number == 1 then
      local admitted, state, new, said = evaluate(counter, first, times)
      if new then store(counter, first, state) end
      size = size + 1
      admissions[size], answers[size] = admitted, said or state or ''
    else
      takeAll(at + 4, number, times, mode == TRY and 0 or times)
    end
    at = at + 4 + 4 * number
  end
end

if stale then return {now} end

for counter = 1, #KEYS do
  if changed[counter] then save(counter, values[counter], sizes[counter]) end
end

return answer(admissions, answers)
