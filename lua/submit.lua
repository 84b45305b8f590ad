#!lua
-- submit: accept jobs into the intake. Refused by the server when memory is full; nothing else here is.
-- KEYS[1..P] {cell}:jobs:<p>        stream, one a partition of the call
-- KEYS[P+1..] {cell}:job:<job_id>   hash, one a job
-- ARGV[1] P   ARGV[2] backlog_max   ARGV[3..P+2] partition numbers
-- ARGV[P+3..] items: index of the partition, job_id, session, tenant, reply_to, nonce, document, payload
-- RETURNS {now_ms, answer, ...}, one a job: {"accepted", entry} | {"duplicate", state} | {"job_id_taken"}
--         | {"busy", backlog} | {"refused", error}
-- INVARIANT a job has one intake entry, written with its record; the same nonce again is accepted again, once.
local partitions, backlog_max = tonumber(ARGV[1]), tonumber(ARGV[2])

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = {now_ms}

local function submit(jobs_key, job_key, partition, item)
  local job_id, session, tenant, reply_to = ARGV[item], ARGV[item + 1], ARGV[item + 2], ARGV[item + 3]
  local nonce, document, payload = ARGV[item + 4], ARGV[item + 5], ARGV[item + 6]
  local record = redis.call('HMGET', job_key, 'state', 'session', 'nonce', 'entry')
  if record[1] then
    if record[3] == nonce and record[2] == session and record[4] then return {'accepted', record[4]} end
    if record[2] == session then return {'duplicate', record[1]} end
    return {'job_id_taken'}
  end
  local backlog = redis.call('XLEN', jobs_key)
  if backlog >= backlog_max then return {'busy', backlog} end

  local entry_id
  if payload == '' then
    entry_id = redis.pcall('XADD', jobs_key, '*', 'job', document, 'job_id', job_id)
  else
    entry_id = redis.pcall('XADD', jobs_key, '*', 'job', document, 'payload', payload, 'job_id', job_id)
  end
  if type(entry_id) == 'table' then return {'refused', entry_id.err} end
  local entry = partition .. '/' .. entry_id
  local submitted_ms = math.min(tonumber(string.match(entry_id, '^%d+')), now_ms)
  local written = {'state', 'queued', 'entry', entry, 'session', session, 'nonce', nonce,
    'submitted_ms', string.format('%.0f', submitted_ms)}
  if tenant ~= '' then
    written[#written + 1], written[#written + 2] = 'tenant', tenant
  end
  if reply_to ~= '' then
    written[#written + 1], written[#written + 2] = 'reply_to', reply_to
  end
  redis.call('HSET', job_key, unpack(written))
  return {'accepted', entry}
end

local job = 0
for item = partitions + 3, #ARGV, 8 do
  job = job + 1
  local index = tonumber(ARGV[item])
  answers[#answers + 1] = submit(KEYS[index], KEYS[partitions + job], ARGV[index + 2], item + 1)
end
return answers
