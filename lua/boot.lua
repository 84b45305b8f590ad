#!lua flags=allow-oom
-- boot: the number of a new life of a node: above all that were given, whatever the clock says, and no lower than its time.
-- KEYS[1] {cell}:last_boot          string
-- KEYS[2] {cell}:capacity           hash: node -> "slots boot reason"
-- KEYS[3] {cell}:slots:<node>       zset: job_id -> lease deadline (ms)
-- ARGV one: node
-- RETURNS {now_ms, number, {job_id, lease_until_ms, ...}}: what earlier lives of the node hold, flat; an error when a key is
--   not that of the node
-- INVARIANT numbers rise. A repeat gives another one, which harms nobody. A number that no clock gives, and that is known
--   of a node all the same, is a matter of that node: those of others do not rise above it.
local last_key, capacity_key, slots_key = KEYS[1], KEYS[2], KEYS[3]
local node = ARGV[1]
local BOOT_MAX = 2 ^ 52 -- a number from which on none is heard
local AHEAD_US = 86400000000 -- no clock is wrong by more

-- INCLUDE values

local fault = fault_of_names({'last_boot', 'capacity', 'slots:' .. tostring(node)})
if fault then return redis.error_reply('ERR boot: ' .. fault) end

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]

-- What nobody could be given a number after was written by no script.
local function number_of(text)
  local number = text and string.find(text, '^%d+$') and tonumber(text) or 0
  return number < BOOT_MAX - 1 and number or 0
end

local stored = redis.call('HGET', capacity_key, node)
local known = number_of(string.match(stored or '', '^%S+ (%d+)%-'))
local next_number = math.max(number_of(redis.call('GET', last_key)) + 1, now_us)
if known <= now_us + AHEAD_US then next_number = math.max(next_number, known + 1) end
redis.call('SET', last_key, string.format('%.0f', next_number))
local number = string.format('%.0f', math.max(next_number, known + 1))
return {math.floor(now_us / 1000), number, redis.call('ZRANGE', slots_key, 0, -1, 'WITHSCORES')}
