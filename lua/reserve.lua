#!lua flags=allow-oom
-- reserve: place a batch of jobs: check order and room, take a slot under a lease, hand the body to the node.
-- KEYS[1] {cell}:owners             hash: partition -> "epoch owner until_ms"
-- KEYS[2] {cell}:capacity           hash: node -> "slots boot reason"
-- KEYS[3] {cell}:open               set
-- KEYS[4..P+3] {cell}:jobs:<p>      stream, one a partition
-- then a node each (N): {cell}:slots:<node> zset, {cell}:inbox:<node> stream
-- then a job each (J): {cell}:job:<job_id> hash, {cell}:session:<id> string
-- ARGV[1] P   ARGV[2] N   ARGV[3] Q   ARGV[4] snapshot_version   ARGV[5] session_ttl_ms
-- then P x (partition, epoch), N x (node, boot), Q x (pool, start_ms, lease_ms, attempts_max, crashes_max, run_ms_max)
-- then a job each: entry_id, partition index, policy index, job_id, session, tenant, reply_to, binding (empty: leave it),
--   bound_node, variant, candidates (node indices with spaces, best first), choice (first | freest)
-- RETURNS {now_ms, answer, ...}, one a job: {"reserved", node, token, used} | {"full"} | {"behind"} | {"fenced"}
--         | {"duplicate"} | {"gone"} | {"job_id_taken"} | {"cancelling"}
-- INVARIANT used slots never exceed the capacity of the boot that the caller saw; a job holds at most one slot; jobs of a
--           session are placed in the order given; the body is in exactly one stream; the same entry gets the same answer.
local owners_key, capacity_key, open_key = KEYS[1], KEYS[2], KEYS[3]
local partitions, nodes, policies = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local snapshot_version, session_ttl_ms = ARGV[4], ARGV[5]
local PARTITION, NODE, POLICY, JOB = 5, 5 + 2 * partitions, 5 + 2 * partitions + 2 * nodes, 12
local FIRST_JOB = POLICY + 6 * policies
local NODE_KEYS, JOB_KEYS = 3 + partitions, 3 + partitions + 2 * nodes

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local last_token = now_us - 1
local answers, blocked = {now_ms}, {}

-- The values of a hash under every second argument from `first` on; one call for all of them.
local function read_all(key, first, count)
  local fields = {}
  for i = 1, count do fields[i] = ARGV[first + 2 * i - 1] end
  return count > 0 and redis.call('HMGET', key, unpack(fields)) or {}
end

local owned = read_all(owners_key, PARTITION, partitions)
for i = 1, partitions do
  owned[i] = owned[i] and string.match(owned[i], '^%S+') == ARGV[PARTITION + 2 * i] or false
end

-- Slots of a candidate, 0 when it takes no work from this caller; counted once a call, and only when it is looked at.
local capacities = read_all(capacity_key, NODE, nodes)
local slots_of, used_of = {}, {}
local function look_at(index)
  local slots, boot = string.match(capacities[index] or '', '^(%S+) (%S+)')
  slots_of[index] = boot == ARGV[NODE + 2 * index] and tonumber(slots) or 0
  used_of[index] = redis.call('ZCARD', KEYS[NODE_KEYS + 2 * index - 1])
end

-- The index of the first candidate with room, or of the one that would be least used afterwards.
local function choose(candidates, choice, except)
  local best, least
  for word in string.gmatch(candidates, '%d+') do
    local index = tonumber(word)
    if not used_of[index] then look_at(index) end
    if not except[index] and used_of[index] < slots_of[index] then
      if choice == 'first' then return index end
      local use = (used_of[index] + 1) / slots_of[index]
      if not best or use < least then best, least = index, use end
    end
  end
  return best
end

local function find(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

-- Append the assignment to the inbox: the one write that can fail, so it comes before all others.
local function assign(index, body, job, token)
  local inbox_key = KEYS[NODE_KEYS + 2 * index]
  local payload = find(body, 'payload')
  return redis.pcall('XADD', inbox_key, '*', 'job', find(body, 'job') or '', 'payload', payload or '',
    'job_id', job.job_id, 'session', job.session, 'tenant', job.tenant, 'partition', job.partition,
    'reply_to', job.reply_to, 'entry', job.entry, 'token', token, 'boot', ARGV[NODE + 2 * index],
    'lease_until_ms', job.lease_until_ms, 'lease_ms', job.lease_ms, 'attempt', job.attempt, 'life', job.life,
    'submitted_ms', job.submitted_ms, 'pool', job.pool)
end

local function reserve(number, item)
  local entry_id, partition_index, policy = ARGV[item], tonumber(ARGV[item + 1]), POLICY + 6 * (tonumber(ARGV[item + 2]) - 1)
  local session, binding, bound_node = ARGV[item + 4], ARGV[item + 7], ARGV[item + 8]
  local job_key, session_key = KEYS[JOB_KEYS + 2 * number - 1], KEYS[JOB_KEYS + 2 * number]
  local jobs_key, partition = KEYS[3 + partition_index], ARGV[PARTITION + 2 * partition_index - 1]
  local entry = partition .. '/' .. entry_id

  if not owned[partition_index] then blocked[session] = true return {'fenced'} end
  local record = redis.call('HMGET', job_key, 'state', 'session', 'entry', 'node', 'token', 'attempts', 'life',
    'submitted_ms', 'cancel', 'crashes', 'not_started')
  local state, token = record[1], tonumber(record[5] or 0)
  if state and record[3] == entry and state ~= 'queued' then
    -- Placed before, wherever it is now; or ended without ever having been placed.
    if (record[4] or '') == '' then return {'gone'} end
    return {'reserved', record[4], record[5] or '0', -1}
  end
  if state and record[2] ~= session then return {'job_id_taken'} end
  if state and record[3] ~= entry then
    redis.call('XDEL', jobs_key, entry_id)
    return {'duplicate'}
  end
  local body = redis.call('XRANGE', jobs_key, entry_id, entry_id)[1]
  if not body then return {'gone'} end
  if record[9] then return {'cancelling'} end
  if blocked[session] then return {'behind'} end

  token = math.max(last_token + 1, token + 1)
  local token_text = string.format('%.0f', token)
  local lease_until_ms = string.format('%.0f', now_ms + tonumber(ARGV[policy + 2]))
  local submitted_ms = record[8] or string.format('%.0f', math.min(tonumber(string.match(entry_id, '^%d+')), now_ms))
  local job = {
    job_id = ARGV[item + 3], session = session, tenant = ARGV[item + 5], reply_to = ARGV[item + 6], partition = partition,
    entry = entry, lease_until_ms = lease_until_ms, lease_ms = ARGV[policy + 3], life = record[7] or '1',
    attempt = string.format('%d', 1 + (record[6] or 0) + (record[10] or 0) + (record[11] or 0)),
    submitted_ms = submitted_ms, pool = ARGV[policy + 1],
  }
  local poisoned, index, inbox_id = {}, nil, nil
  repeat
    index = choose(ARGV[item + 10], ARGV[item + 11], poisoned)
    if not index then blocked[session] = true return {'full'} end
    inbox_id = assign(index, body[2], job, token_text)
    if type(inbox_id) == 'table' then poisoned[index], inbox_id = true, nil end
  until inbox_id

  last_token = token
  local node = ARGV[NODE + 2 * index - 1]
  redis.call('XDEL', jobs_key, entry_id)
  redis.call('ZADD', KEYS[NODE_KEYS + 2 * index - 1], lease_until_ms, job.job_id)
  redis.call('HSET', job_key, 'state', 'reserved', 'entry', entry, 'partition', partition, 'session', session,
    'tenant', job.tenant, 'reply_to', job.reply_to, 'submitted_ms', submitted_ms, 'node', node,
    'boot', ARGV[NODE + 2 * index], 'token', token_text, 'inbox_id', inbox_id, 'lease_until_ms', lease_until_ms,
    'pool', job.pool, 'variant', ARGV[item + 9], 'snapshot_version', snapshot_version, 'lease_ms', job.lease_ms,
    'attempts_max', ARGV[policy + 4], 'crashes_max', ARGV[policy + 5], 'run_ms_max', ARGV[policy + 6])
  if binding ~= '' and node ~= bound_node then
    redis.call('SET', session_key, binding .. ' ' .. node .. ' ' .. ARGV[item + 9], 'PX', session_ttl_ms)
  end
  used_of[index] = used_of[index] + 1
  if used_of[index] >= slots_of[index] then redis.call('SREM', open_key, node) end
  return {'reserved', node, token_text, used_of[index]}
end

local number = 0
for item = FIRST_JOB + 1, #ARGV, JOB do
  number = number + 1
  answers[number + 1] = reserve(number, item)
end
return answers
