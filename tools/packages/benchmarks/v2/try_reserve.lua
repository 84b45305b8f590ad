#!lua flags=allow-oom
-- try_reserve: take a slot of a node for a time, if one is free (section 3.1, step 4).
-- KEYS[1] {cell}:slots:<node>   zset: job id -> end of its reservation (ms)
-- ARGV[1] job_id   ARGV[2] slots   ARGV[3] ttl_ms
-- RETURNS {"reserved", used} | {"full", used}
-- INVARIANT the reservations of a node that have not ended are never more than its slots.
local slots_key, job_id, slots, ttl_ms = KEYS[1], ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', slots_key, '-inf', now_ms)
local used = redis.call('ZCARD', slots_key)
if used >= slots then return {'full', used} end
redis.call('ZADD', slots_key, string.format('%.0f', now_ms + ttl_ms), job_id)
return {'reserved', used + 1}
