#!lua flags=allow-oom
-- promote: delayed jobs that are due go back to the intake.
-- KEYS[1] {cell}:delayed zset: job_id -> due (ms)   KEYS[2] {cell}:parked stream   KEYS[3] {cell}:results stream
-- KEYS[4..] a job each: {cell}:job:<job_id> hash, {cell}:jobs:<p> stream, {cell}:results:<reply_to> stream
-- ARGV[1] retention_ms   ARGV[2] results_max   ARGV[3..] items: job_id, partition, reply_to
-- RETURNS {now_ms, answer, ...}, one a job: {"promoted", entry} | {"early", due_ms} | {"stale"} | {"moved"}
--         | {"dead"}: the parked body is missing | {"busy", due_ms}: the intake does not take it, tried again later
-- INVARIANT a delayed job has one parked body; promoting moves it to the intake in one step. A repeat answers "stale".
--   A job is due no later than its own delay from now, whatever the clock did since.
local delayed_key, parked_key, results_key = KEYS[1], KEYS[2], KEYS[3]
local retention_ms, results_max = ARGV[1], ARGV[2]
local BUSY_MS = 1000
local FIELDS = {'state', 'entry', 'parked_id', 'session', 'life', 'holder', 'attempts', 'submitted_ms', 'reply_to', 'nonce',
  'delay_ms'}

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = string.format('%.0f', now_ms)
local answers, feed, reply_keys = {now_ms}, {}, {}

-- INCLUDE streams
-- INCLUDE outcomes
-- INCLUDE endings
-- INCLUDE transitions

local function lose_body(job_key, reply_key, job_id, record, state)
  redis.call('ZREM', delayed_key, job_id)
  local ending = {'state', state, 'reason', 'body_lost', 'session', record.session or '', 'entry', record.entry}
  feed[#feed + 1] = end_job(job_key, job_id, record, ending, now_text, 'the parked entry is missing', retention_ms)
  reply_keys[#reply_keys + 1] = reply_key
  return {'dead'}
end

local function promote(job_key, jobs_key, reply_key, job_id, partition, reply_to)
  local record, values = {}, redis.pcall('HMGET', job_key, unpack(FIELDS)) -- one of another type is none
  for i, name in ipairs(FIELDS) do
    record[name] = values[i] or nil
  end
  local queued, dead = next_state(record.state, 'promoted'), next_state(record.state, 'body_lost')
  if not queued or not dead then
    redis.call('ZREM', delayed_key, job_id)
    return {'stale'}
  end
  if string.match(record.entry or '', '^%d+') ~= partition or (record.reply_to or '') ~= reply_to then return {'moved'} end
  local due_ms = tonumber(redis.call('ZSCORE', delayed_key, job_id) or 0)
  if due_ms > now_ms then
    local latest_ms = now_ms + (tonumber(record.delay_ms) or due_ms)
    if due_ms > latest_ms then -- written before the clock went back
      due_ms = latest_ms
      redis.call('ZADD', delayed_key, 'XX', string.format('%.0f', due_ms), job_id)
    end
    return {'early', due_ms}
  end
  local parked_id = string.match(record.parked_id or '', '^%d+%-%d+$')
  local parked = parked_id and redis.pcall('XRANGE', parked_key, parked_id, parked_id)[1]
  if not parked then return lose_body(job_key, reply_key, job_id, record, dead) end

  local fields = {}
  for i = 1, #parked[2], 2 do
    if parked[2][i] ~= 'partition' then
      fields[#fields + 1] = parked[2][i]
      fields[#fields + 1] = parked[2][i + 1]
    end
  end
  local entry_id = redis.pcall('XADD', jobs_key, '*', unpack(fields))
  if type(entry_id) == 'table' then
    redis.call('ZADD', delayed_key, string.format('%.0f', now_ms + BUSY_MS), job_id)
    return {'busy', now_ms + BUSY_MS}
  end
  local entry = partition .. '/' .. entry_id
  redis.call('XDEL', parked_key, parked_id)
  redis.call('ZREM', delayed_key, job_id)
  redis.call('HSET', job_key, 'state', queued, 'entry', entry)
  redis.call('HDEL', job_key, 'parked_id', 'delay_ms')
  return {'promoted', entry}
end

local key_index = 4
for item = 3, #ARGV, 3 do
  answers[#answers + 1] = promote(KEYS[key_index], KEYS[key_index + 1], KEYS[key_index + 2], ARGV[item], ARGV[item + 1], ARGV[item + 2])
  key_index = key_index + 3
end
tell_outcomes(feed, reply_keys, results_key, results_max, retention_ms, now_ms)
return answers
