#!lua flags=allow-oom
-- last_ids: the highest id that each of some streams has used, also if that entry is gone. XINFO would answer bodies too.
-- KEYS[1..] streams: {cell}:jobs:<p>, {cell}:inbox:<node>, {cell}:freed, {cell}:parked, {cell}:dead, or {sched}:heartbeats,
--   {sched}:commands
-- ARGV none
-- RETURNS {now_ms, id, ...}, one a stream; empty where there is none
-- INVARIANT nothing is changed.
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = {now_ms}

-- INCLUDE reopen

for i = 1, #KEYS do
  answers[i + 1] = last_id_of(KEYS[i]) or ''
end
return answers
