#!lua flags=allow-oom
-- renew: a node's leases go on; the first renewal of a reservation that was started marks that.
-- KEYS[1] {cell}:slots:<node>       zset: job_id -> lease deadline (ms)
-- KEYS[2..] {cell}:job:<job_id>     hash, one a job; the last one is {cell}:capacity, a hash: node -> "slots boot reason"
-- ARGV items: job_id, token, phase: started | waiting (it did not start yet: its body is still on its way, say)
-- RETURNS {now_ms, answer, ...}, one a job: {"renewed", lease_until_ms} | {"cancelling", lease_until_ms}
--         | {"stale", token} | {"unknown"} | {"overrun", started_ms} | {"crowded", slots}
--         | {"invalid", why}: a value can be none
-- INVARIANT only the live reservation with this token is prolonged. A lapsed lease that nobody took may still be renewed. So
--           may one whose slot was lost with its key, once the node has room for it. The time a job has run counts what
--           passed between renewals, a lease at most and never less than nothing: a step of the clock is no time of it.
local slots_key, capacity_key = KEYS[1], KEYS[#KEYS]

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = {now_ms}

-- INCLUDE values

-- How much of the time since the last renewal the job cannot have run in: all beyond a lease; below 0 if it is negative.
local function unrun_ms(passed_ms, lease_ms)
  return passed_ms < 0 and passed_ms or math.max(0, passed_ms - lease_ms)
end

-- Whether a reservation without a slot gets one back; and how many there are. Others may have come into its place.
local function has_room(node)
  local slots = tonumber(string.match(redis.call('HGET', capacity_key, node) or '', '^%S+')) or 0
  return redis.call('ZCARD', slots_key) < slots, slots
end

if #ARGV % 3 ~= 0 or #KEYS ~= 2 + #ARGV / 3 then
  return redis.error_reply('ERR renew: number of arguments = ' .. #ARGV .. ' with ' .. #KEYS .. ' keys: expected 3 a job, and 2 keys more than jobs')
end

local function renew(job_key, job_id, token, phase)
  if string.sub(job_key, -#job_id - 5) ~= ':job:' .. job_id then
    return {'invalid', wrong('job_id', job_id, 'that of the key ' .. job_key)}
  end
  if not string.find(token, '^%d+$') then
    return {'invalid', wrong('token', token, 'digits')}
  end
  if phase ~= 'started' and phase ~= 'waiting' then
    return {'invalid', wrong('phase', phase, 'started or waiting')}
  end
  local record = redis.pcall('HMGET', job_key, 'state', 'holder', 'policy', 'started_ms', 'cancel', 'assignment')
  if not record[1] then return {'unknown'} end -- nor is one of another type a record
  local node, last = string.match(record[2] or '', '^(%S+) (%S+)$')
  if record[1] ~= 'reserved' or last ~= token then return {'stale', last or '0'} end
  local until_ms = tonumber(redis.call('ZSCORE', slots_key, job_id) or nil)
  if not until_ms and string.match(slots_key, '}:slots:(.*)$') ~= node then return {'stale', last} end
  local lease_ms, run_ms_max = string.match(record[3] or '', '^%S+ (%d+) %d+ %d+ (%d+)')
  if not lease_ms then return {'unknown'} end
  local started_ms = tonumber(record[4])
  local passed_ms = until_ms and now_ms - (until_ms - lease_ms) or 0 -- since the last renewal
  local began_ms = started_ms and math.min(started_ms + unrun_ms(passed_ms, tonumber(lease_ms)), now_ms)
  if began_ms and now_ms > began_ms + run_ms_max then return {'overrun', string.format('%.0f', began_ms)} end

  if not until_ms then
    local fits, slots = has_room(node)
    if not fits then return {'crowded', slots} end
  end
  local lease_until_ms = string.format('%.0f', now_ms + lease_ms)
  redis.call('ZADD', slots_key, lease_until_ms, job_id)
  if not started_ms and phase == 'started' then began_ms = now_ms end
  if not began_ms and record[6] then -- the lease in force is no first one any more
    local assignment = string.gsub(record[6], ' %d+$', ' ' .. lease_ms)
    if assignment ~= record[6] then redis.call('HSET', job_key, 'assignment', assignment) end
  end
  if began_ms ~= started_ms then redis.call('HSET', job_key, 'started_ms', string.format('%.0f', began_ms)) end
  return {record[5] and 'cancelling' or 'renewed', lease_until_ms}
end

for i = 1, #ARGV, 3 do
  answers[#answers + 1] = renew(KEYS[(i + 5) / 3], ARGV[i], ARGV[i + 1], ARGV[i + 2])
end
return answers
