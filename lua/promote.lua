#!lua flags=allow-oom
-- promote: delayed jobs that are due go back to the intake.
-- KEYS[1] {cell}:delayed zset: job_id -> due (ms)   KEYS[2] {cell}:parked stream   KEYS[3] {cell}:results stream
-- KEYS[4..] a job each: {cell}:job:<job_id> hash, {cell}:jobs:<p> stream, {cell}:results:<reply_to> stream
-- ARGV[1] retention_ms   ARGV[2] results_max   ARGV[3..] items: job_id, partition, reply_to
-- RETURNS {now_ms, answer, ...}, one a job: {"promoted", entry} | {"early", due_ms} | {"stale"} | {"moved"}
--         | {"dead"}: the parked body is missing | {"busy", due_ms}: the intake does not take it, tried again later
-- INVARIANT a delayed job has one parked body; promoting moves it to the intake in one step. A repeat answers "stale".
--   Jobs come into the intake by their due times, and of equal ones in the order of their first entries, as once before.
--   A job is due no later than its own delay from now, whatever the clock did since.
local delayed_key, parked_key, results_key = KEYS[1], KEYS[2], KEYS[3]
local retention_ms, results_max = ARGV[1], ARGV[2]
local BUSY_MS = 1000
local FIELDS = {'state', 'entry', 'parked_id', 'session', 'life', 'holder', 'attempts', 'submitted_ms', 'reply_to', 'nonce',
  'delay_ms', 'first_id'}

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = string.format('%.0f', now_ms)
local answers, feed, reply_keys = {now_ms}, {}, {}

-- INCLUDE streams
-- INCLUDE outcomes
-- INCLUDE endings
-- INCLUDE transitions

local function lose_body(job_key, reply_key, job_id, record)
  redis.call('ZREM', delayed_key, job_id)
  local ending = {'state', record.dead, 'reason', 'body_lost', 'session', record.session or '', 'entry', record.entry}
  feed[#feed + 1] = end_job(job_key, job_id, record, ending, now_text, 'the parked entry is missing', retention_ms)
  reply_keys[#reply_keys + 1] = reply_key
  return {'dead'}
end

-- The record of a job, and when it is due; or the answer for a job that is not to be promoted now.
local function look_at(job_key, job_id, partition, reply_to)
  local record, values = {}, redis.pcall('HMGET', job_key, unpack(FIELDS)) -- one of another type is none
  for i, name in ipairs(FIELDS) do
    record[name] = values[i] or nil
  end
  record.queued, record.dead = next_state(record.state, 'promoted'), next_state(record.state, 'body_lost')
  if not record.queued or not record.dead then
    redis.call('ZREM', delayed_key, job_id)
    return nil, {'stale'}
  end
  if string.match(record.entry or '', '^%d+') ~= partition or (record.reply_to or '') ~= reply_to then
    return nil, {'moved'}
  end
  local due_ms = tonumber(redis.call('ZSCORE', delayed_key, job_id) or 0)
  if due_ms > now_ms then
    local latest_ms = now_ms + (tonumber(record.delay_ms) or due_ms)
    if due_ms > latest_ms then -- written before the clock went back
      due_ms = latest_ms
      redis.call('ZADD', delayed_key, 'XX', string.format('%.0f', due_ms), job_id)
    end
    return nil, {'early', due_ms}
  end
  record.due_ms = due_ms
  return record
end

-- Whether an id stands before another one. A number of Lua is not exact for all of them.
local function is_before(id, other)
  local ms, sequence = string.match(id, '^0*(%d+)%-0*(%d+)$')
  local other_ms, other_sequence = string.match(other, '^0*(%d+)%-0*(%d+)$')
  if not ms or not other_ms then return ms ~= nil and not other_ms end -- what is no id comes last
  if ms == other_ms then ms, other_ms = sequence, other_sequence end
  if #ms ~= #other_ms then return #ms < #other_ms end
  return ms < other_ms
end

local function promote(job)
  local record, job_id = job.record, job.job_id
  local parked_id = string.match(record.parked_id or '', '^%d+%-%d+$')
  local parked = parked_id and redis.pcall('XRANGE', parked_key, parked_id, parked_id)[1]
  if not parked then return lose_body(job.job_key, job.reply_key, job_id, record) end

  local fields = {}
  for i = 1, #parked[2], 2 do
    if parked[2][i] ~= 'partition' then
      fields[#fields + 1] = parked[2][i]
      fields[#fields + 1] = parked[2][i + 1]
    end
  end
  local entry_id = redis.pcall('XADD', job.jobs_key, '*', unpack(fields))
  if type(entry_id) == 'table' then
    redis.call('ZADD', delayed_key, string.format('%.0f', now_ms + BUSY_MS), job_id)
    return {'busy', now_ms + BUSY_MS}
  end
  local entry = job.partition .. '/' .. entry_id
  redis.call('XDEL', parked_key, parked_id)
  redis.call('ZREM', delayed_key, job_id)
  redis.call('HSET', job.job_key, 'state', record.queued, 'entry', entry)
  redis.call('HDEL', job.job_key, 'parked_id', 'delay_ms')
  return {'promoted', entry}
end

local due, key_index = {}, 4
for item = 3, #ARGV, 3 do
  local number, job_id, partition = (item - 3) / 3 + 1, ARGV[item], ARGV[item + 1]
  local record, answer = look_at(KEYS[key_index], job_id, partition, ARGV[item + 2])
  if record and due[job_id] then
    answer = {'stale'} -- it is named before, too
  elseif record then
    local job = {number = number, job_id = job_id, partition = partition, record = record,
      job_key = KEYS[key_index], jobs_key = KEYS[key_index + 1], reply_key = KEYS[key_index + 2],
      first_id = record.first_id or string.match(record.entry, '/(.*)$') or ''}
    due[job_id], due[#due + 1] = true, job
  end
  answers[number + 1] = answer or false
  key_index = key_index + 3
end
table.sort(due, function(job, other)
  if job.record.due_ms ~= other.record.due_ms then return job.record.due_ms < other.record.due_ms end
  if is_before(job.first_id, other.first_id) then return true end
  if is_before(other.first_id, job.first_id) then return false end
  return job.number < other.number
end)
for _, job in ipairs(due) do
  answers[job.number + 1] = promote(job)
end
tell_outcomes(feed, reply_keys, results_key, results_max, retention_ms, now_ms)
return answers
