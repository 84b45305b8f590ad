#!lua
-- describe: keep what is known of failed attempts beside the records of their jobs. Refused when memory is full.
-- KEYS[1..] a job each: {cell}:job:<job_id> hash, {cell}:detail:<job_id> string
-- ARGV[1] retention_ms   then a job each: job_id, token, detail
-- RETURNS {answer, ...}, one a job: {"described"} | {"stale", token} | {"unknown"}
--         | {"invalid", why}: a value of this item can be none; an error when the call itself cannot be read
-- INVARIANT only the attempt that ended last is described; what is kept expires: with the record of a job that has ended,
--           else `retention_ms` after its delay.
local retention_ms = ARGV[1]
local JOB, JOBS_MAX, DETAIL_BYTES_MAX = 3, 128, 4096

-- INCLUDE values

-- What is wrong with the call, nil if nothing is.
local function fault_of_call()
  local items = (#ARGV - 1) / JOB
  if not whole(retention_ms, 1, 1e15) then
    return wrong('retention_ms', retention_ms, 'a whole number from 1')
  elseif items ~= math.floor(items) then
    return wrong('number of arguments', #ARGV, '1, and ' .. JOB .. ' a job')
  elseif items > JOBS_MAX then
    return wrong('number of jobs', items, JOBS_MAX .. ' at most')
  elseif #KEYS ~= 2 * items then
    return wrong('number of keys', #KEYS, '2 a job')
  end
end

local fault = fault_of_call()
if fault then return redis.error_reply('ERR describe: ' .. fault) end

-- What is wrong with the values of an item, nil if nothing is.
local function fault_of(job_key, detail_key, job_id, token, detail)
  if string.sub(job_key, -#job_id - 5) ~= ':job:' .. job_id then
    return wrong('job_id', job_id, 'that of the key ' .. job_key)
  elseif string.sub(detail_key, -#job_id - 8) ~= ':detail:' .. job_id then
    return wrong('job_id', job_id, 'that of the key ' .. detail_key)
  elseif not string.find(token, '^%d+$') then
    return wrong('token', token, 'digits')
  elseif detail == '' or #detail > DETAIL_BYTES_MAX then
    return wrong('detail', detail, '1 to ' .. DETAIL_BYTES_MAX .. ' bytes')
  end
end

local function describe(job_key, detail_key, job_id, token, detail)
  local item_fault = fault_of(job_key, detail_key, job_id, token, detail)
  if item_fault then return {'invalid', item_fault} end
  local record = redis.call('HMGET', job_key, 'state', 'last_ending', 'delay_ms')
  if not record[1] then return {'unknown'} end
  local last = string.match(record[2] or '', '^%d+')
  if last ~= token then return {'stale', last or '0'} end
  local rest_ms = redis.call('PTTL', job_key)
  if rest_ms < 0 then
    local delay_ms = record[1] == 'delayed' and tonumber(record[3]) or 0
    rest_ms = delay_ms + retention_ms
  end
  redis.call('SET', detail_key, detail, 'PX', string.format('%.0f', math.max(1, rest_ms)))
  return {'described'}
end

local answers = {}
for item = 2, #ARGV, JOB do
  local number = (item - 2) / JOB
  answers[number + 1] = describe(KEYS[2 * number + 1], KEYS[2 * number + 2], ARGV[item], ARGV[item + 1], ARGV[item + 2])
end
return answers
