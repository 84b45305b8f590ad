#!lua
-- submit: accept jobs into the intake. Refused by the server when memory is full; nothing else here is.
-- KEYS[1..P] {cell}:jobs:<p>        stream, one a partition of the call
-- KEYS[P+1..] {cell}:job:<job_id>   hash, one a job; the last one is {cell}:partitions, a string: how many there are
-- ARGV[1] P   ARGV[2] backlog_max   ARGV[3..P+2] partition numbers
-- ARGV[P+3..] items: index of the partition, job_id, session, tenant, reply_to, nonce, document, payload
-- RETURNS {now_ms, answer, ...}, one a job: {"accepted", entry} | {"duplicate", state} | {"job_id_taken"}
--         | {"busy", backlog} | {"refused", error} | {"invalid", why}: a value of this item can be none; an error when
--         the call itself cannot be read
-- INVARIANT a job has one intake entry, written with its record; the same nonce again is accepted again, once.
local partitions, backlog_max = tonumber(ARGV[1]) or 0, tonumber(ARGV[2]) or 0 -- looked at in `fault_of_call`
local JOB, JOBS_MAX = 8, 128
local PARTITIONS_MAX = 4096 -- of a layout

-- INCLUDE values
-- INCLUDE transitions

-- What is wrong with the call, nil if nothing is.
local function fault_of_call()
  for i, name in ipairs({'P', 'backlog_max'}) do
    if not whole(ARGV[i], 0, 1e15) then return wrong(name, ARGV[i], 'a whole number') end
  end
  local items = (#ARGV - 2 - partitions) / JOB
  if items ~= math.floor(items) or items < 0 then
    return wrong('number of arguments', #ARGV, '2 + P, and ' .. JOB .. ' a job')
  elseif items > JOBS_MAX then
    return wrong('number of jobs', items, JOBS_MAX .. ' at most')
  elseif #KEYS ~= partitions + items + 1 then
    return wrong('number of keys', #KEYS, 'P, 1 a job, and that of the partitions')
  end
  local partitions_key = KEYS[#KEYS]
  local cell = string.match(partitions_key, '^(.*:)partitions$')
  if not cell then return wrong('KEYS[' .. #KEYS .. ']', partitions_key, 'that of the partitions') end
  -- Nobody reads an intake that is none of the layout. Before a manager was there nobody knows.
  local most = whole(redis.call('GET', partitions_key), 1, PARTITIONS_MAX) or PARTITIONS_MAX
  for i = 1, partitions do
    local partition = ARGV[2 + i]
    if KEYS[i] ~= cell .. 'jobs:' .. partition then
      return wrong('KEYS[' .. i .. ']', KEYS[i], 'the intake of partition ' .. partition)
    elseif not whole(partition, 0, most - 1) or string.find(partition, '^0.') then
      return wrong('partition', partition, 'a number from 0 to ' .. most - 1)
    end
  end
end

local fault = fault_of_call()
if fault then return redis.error_reply('ERR submit: ' .. fault) end

local function can_stand_in_a_key(text, most)
  return #text <= most and string.find(text, '^[!-z|~]+$')
end

-- What is wrong with the values of an item, nil if nothing is. A document that is broken ends as dead, where all can see it.
local function fault_of(job_key, item)
  local job_id, session, tenant, reply_to = ARGV[item + 1], ARGV[item + 2], ARGV[item + 3], ARGV[item + 4]
  local ID, NAME = '1 to 128 visible ASCII characters without spaces and braces', 'at most 64 such characters'
  if not whole(ARGV[item], 1, partitions) then return wrong('partition', ARGV[item], 'an index from 1 to P = ' .. partitions) end
  if not can_stand_in_a_key(job_id, 128) then return wrong('job_id', job_id, ID) end
  if string.sub(job_id, 1, 1) == '~' then return wrong('job_id', job_id, 'one that does not begin with ~') end
  if string.sub(job_key, -#job_id - 5) ~= ':job:' .. job_id then return wrong('job_id', job_id, 'that of the key ' .. job_key) end
  if not can_stand_in_a_key(session, 128) then return wrong('session', session, ID) end
  if tenant ~= '' and not can_stand_in_a_key(tenant, 64) then return wrong('tenant', tenant, NAME) end
  if reply_to ~= '' and not can_stand_in_a_key(reply_to, 64) then return wrong('reply_to', reply_to, NAME) end
  if ARGV[item + 5] == '' then return wrong('nonce', '', 'something random') end
end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = {now_ms}

local function submit(jobs_key, job_key, partition, item)
  local job_id, session, tenant, reply_to = ARGV[item], ARGV[item + 1], ARGV[item + 2], ARGV[item + 3]
  local nonce, document, payload = ARGV[item + 4], ARGV[item + 5], ARGV[item + 6]
  local record = redis.call('HMGET', job_key, 'state', 'session', 'nonce', 'entry')
  local state = next_state(record[1], 'submitted')
  if not state then
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
  local written = {'state', state, 'entry', entry, 'session', session, 'nonce', nonce,
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
for item = partitions + 3, #ARGV, JOB do
  job = job + 1
  local job_key, index = KEYS[partitions + job], tonumber(ARGV[item])
  local item_fault = fault_of(job_key, item)
  answers[#answers + 1] = item_fault and {'invalid', item_fault} or submit(KEYS[index], job_key, ARGV[index + 2], item + 1)
end
return answers
