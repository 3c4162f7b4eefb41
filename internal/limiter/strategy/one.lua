-- SPDX-License-Identifier: Apache-2.0

-- Decides one request with one hit, as take.lua does, in less time than that takes to be ready for more. Before this
-- stand the prelude and the functions rule and open.
--
-- KEYS     the counter.
-- ARGV[1]  the terms.
-- Reply    as in take.lua.

local value = call('MGET', KEYS[1])[1]
local kind
kind, expiries[1] = 0, 0
if value and #value > HEADER then kind, expiries[1] = read('<BI5', value) end

local old = kind == LAYOUT and value or nil
if not value then old = open(1) end
local take = rule(read('<dddddd', ARGV[1], 33))
local admitted, state, new, said = take(old, read('<d', ARGV[1], 17), 1, 1)
if stale then return {now} end
if new then save(1, state) end
return {now, admitted, said or state or ''}
