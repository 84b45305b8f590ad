#!lua flags=allow-oom
-- uncount: take jobs out of a limit that count for it and hold no slot: their records were deleted, or changed by hand.
-- KEYS[1] {cell}:freed              stream
-- KEYS[2] {cell}:held:<kind>:<id>   zset
-- then a job each: {cell}:job:<job_id> hash
-- ARGV[1] freed_max   ARGV[2] limit, as `freed` tells it   then a job each: job_id
-- RETURNS {answer, ...}, one a job: "removed" | "kept"
-- INVARIANT whoever is reserved goes on to count; the limit is told when there is room in it; a repeat changes nothing.
local freed_key, held_key = KEYS[1], KEYS[2]
local freed_max, limit = ARGV[1], ARGV[2]
local answers, is_freed = {}, false

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- INCLUDE streams

for item = 3, #ARGV do
  local is_reserved = redis.pcall('HGET', KEYS[item], 'state') == 'reserved'
  if not is_reserved and redis.call('ZREM', held_key, ARGV[item]) == 1 then is_freed = true end
  answers[#answers + 1] = is_reserved and 'kept' or 'removed'
end
if is_freed then
  tell(freed_key, 0, now_ms, 'MAXLEN', '~', freed_max, '*', 'nodes', '', 'limits', limit)
end
return answers
