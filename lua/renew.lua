#!lua flags=allow-oom
-- renew: a node's leases go on; the first renewal of a reservation marks that its job was started.
-- KEYS[1] {cell}:slots:<node>       zset: job_id -> lease deadline (ms)
-- KEYS[2..] {cell}:job:<job_id>     hash, one a job
-- ARGV items: job_id, token
-- RETURNS {now_ms, answer, ...}, one a job: {"renewed", lease_until_ms} | {"cancelling", lease_until_ms}
--         | {"stale", token} | {"unknown"} | {"overrun", started_ms} | {"invalid", why}: a value can be none
-- INVARIANT only the live reservation with this token is prolonged. A lapsed lease that nobody took may still be renewed.
local slots_key = KEYS[1]

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = {now_ms}

if #ARGV % 2 == 1 or #KEYS ~= 1 + #ARGV / 2 then
  return redis.error_reply('ERR renew: number of arguments = ' .. #ARGV .. ' with ' .. #KEYS .. ' keys: expected 2 a job, and 1 key more than jobs')
end

local function renew(job_key, job_id, token)
  if string.sub(job_key, -#job_id - 5) ~= ':job:' .. job_id then
    return {'invalid', "job_id = '" .. string.sub(job_id, 1, 64) .. "': expected that of the key " .. job_key}
  end
  if not string.find(token, '^%d+$') then
    return {'invalid', "token = '" .. string.sub(token, 1, 64) .. "': expected digits"}
  end
  local record = redis.call('HMGET', job_key, 'state', 'holder', 'policy', 'started_ms', 'cancel')
  if not record[1] then return {'unknown'} end
  local last = string.match(record[2] or '', '^%S+ (%S+)$')
  if record[1] ~= 'reserved' or last ~= token then return {'stale', last or '0'} end
  if not redis.call('ZSCORE', slots_key, job_id) then return {'stale', last} end
  local lease_ms, run_ms_max = string.match(record[3] or '', '^%S+ (%d+) %d+ %d+ (%d+)')
  if not lease_ms then return {'unknown'} end
  local started_ms = tonumber(record[4])
  if started_ms and now_ms > started_ms + run_ms_max then return {'overrun', record[4]} end

  local lease_until_ms = string.format('%.0f', now_ms + lease_ms)
  redis.call('ZADD', slots_key, 'XX', lease_until_ms, job_id)
  if not started_ms then redis.call('HSET', job_key, 'started_ms', string.format('%.0f', now_ms)) end
  return {record[5] and 'cancelling' or 'renewed', lease_until_ms}
end

for i = 1, #ARGV, 2 do
  answers[#answers + 1] = renew(KEYS[(i + 3) / 2], ARGV[i], ARGV[i + 1])
end
return answers
