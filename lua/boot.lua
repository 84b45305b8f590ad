#!lua flags=allow-oom
-- boot: the number of a new life of a node: above all that were given, whatever the clock says, and no lower than its time.
-- KEYS[1] {cell}:last_boot          string
-- KEYS[2] {cell}:capacity           hash: node -> "slots boot reason"
-- KEYS[3] {cell}:slots:<node>       zset: job_id -> lease deadline (ms)
-- ARGV one: node
-- RETURNS {now_ms, number, {job_id, lease_until_ms, ...}}: what earlier lives of the node hold, flat
-- INVARIANT numbers rise. A repeat gives another one, which harms nobody.
local last_key, capacity_key, slots_key = KEYS[1], KEYS[2], KEYS[3]
local node = ARGV[1]

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]

local stored = redis.call('HGET', capacity_key, node)
local known = tonumber(string.match(stored or '', '^%S+ (%d+)%-')) or 0
local last = math.max(tonumber(redis.call('GET', last_key) or 0), known)
local number = string.format('%.0f', math.max(last + 1, now_us))
redis.call('SET', last_key, number)
return {math.floor(now_us / 1000), number, redis.call('ZRANGE', slots_key, 0, -1, 'WITHSCORES')}
