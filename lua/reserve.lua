#!lua flags=allow-oom
-- reserve: place a batch of jobs: check order and room, take a slot under a lease, hand the body to the node.
-- KEYS[1] {cell}:owners             hash: partition -> "epoch owner until_ms"
-- KEYS[2] {cell}:capacity           hash: node -> "slots boot reason"
-- KEYS[3] {cell}:open               set
-- KEYS[4..P+3] {cell}:jobs:<p>      stream, one a partition
-- then a node each (N): {cell}:slots:<node> zset, {cell}:inbox:<node> stream
-- then a job each (J): {cell}:job:<job_id> hash, {cell}:session:<id> string
-- then a limit each: {cell}:held:<kind>:<id> set
-- ARGV[1] P   ARGV[2] N   ARGV[3] Q   ARGV[4] snapshot_version   ARGV[5] session_ttl_ms   ARGV[6] J
-- then P x (partition, epoch), N x (node, boot),
--   Q x (pool, start_ms, lease_ms, attempts_max, crashes_max, run_ms_max, backoff_ms, backoff_ms_max)
-- then a job each: entry_id, partition index, policy index, job_id, session, tenant, reply_to,
--   candidates (groups of node indices, "3;5 7": the freest of the first group that has room is taken),
--   bound, preferred (node indices, 0: none; see `explain`), why (it is placed elsewhere than on `bound`), note,
--   binding (empty: leave it), stored_node (the node in the stored binding, empty: write it anew), variant,
--   keeps (the session stays bound to `bound` although it is placed elsewhere, if that is why; empty: never),
--   follows (1: before its candidates it is tried where the session's last job of this call went),
--   limits ("kind:index:max" with spaces between; index counts the limits' keys)
-- RETURNS {now_ms, answer, ...}, one a job: {"reserved", node, token, used, its slots, node that the session is bound to}
--         | {"full"} | {"limited", kind} | {"behind"} | {"fenced"} | {"duplicate"} | {"gone"} | {"job_id_taken"} | {"cancelling"}
-- INVARIANT used slots never exceed the capacity of the boot that the caller saw; a job holds at most one slot; no limit
--           counts more jobs than it allows; jobs of a session are placed in the order given; the body is in exactly one
--           stream; the same entry gets the same answer.
local KEYS, ARGV = KEYS, ARGV
local owners_key, capacity_key, open_key = KEYS[1], KEYS[2], KEYS[3]
local partitions, nodes, policies = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local snapshot_version, session_ttl_ms, jobs = ARGV[4], ARGV[5], tonumber(ARGV[6])
local PARTITION, NODE, POLICY, JOB = 6, 6 + 2 * partitions, 6 + 2 * partitions + 2 * nodes, 18
local FIRST_JOB = POLICY + 8 * policies
local NODE_KEYS, JOB_KEYS, LIMIT_KEYS = 3 + partitions, 3 + partitions + 2 * nodes, 3 + partitions + 2 * nodes + 2 * jobs

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local last_token = now_us - 1
local answers, blocked, homes = {now_ms}, {}, {}

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

-- By which policy of a pool a job runs, as one text, and when a lease that begins now ends.
local policy_of, lease_until_ms_of = {}, {}
for i = 1, policies do
  local at = POLICY + 8 * (i - 1)
  policy_of[i] = table.concat({ARGV[at + 1], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5], ARGV[at + 6], ARGV[at + 7], ARGV[at + 8],
    snapshot_version}, ' ')
  lease_until_ms_of[i] = string.format('%.0f', now_ms + ARGV[at + 2])
end

-- When a job was first submitted, by the id of its entry, but never in the future.
local function submitted(entry_id)
  local ms = string.match(entry_id, '^%d+')
  return tonumber(ms) <= now_ms and ms or string.format('%.0f', now_ms)
end

-- Slots of a candidate, 0 when it takes no work from this caller; counted once a call, and only when it is looked at.
local capacities = read_all(capacity_key, NODE, nodes)
local slots_of, used_of = {}, {}
local function look_at(index)
  local slots, boot = string.match(capacities[index] or '', '^(%S+) (%S+)')
  slots_of[index] = boot == ARGV[NODE + 2 * index] and tonumber(slots) or 0
  used_of[index] = redis.call('ZCARD', KEYS[NODE_KEYS + 2 * index - 1])
end

-- The index of the node that would be least used afterwards, of the first group in which one has room.
local function choose(candidates, except)
  local best, least
  for word, ends in string.gmatch(candidates, '(%d+)(;?)') do
    local index = tonumber(word)
    if not used_of[index] then look_at(index) end
    local used, slots = used_of[index], slots_of[index]
    if used < slots and not (except and except[index]) then
      local use = (used + 1) / slots
      if not best or use < least then best, least = index, use end
    end
    if best and ends == ';' then return best end
  end
  return best
end

-- Why the job is where it is: one word, and of the node that its session is bound to the slots at this decision.
-- Also whether that node takes no work at all (`closed`), which a full one does.
local function explain(index, job)
  local bound = job.bound
  if index == bound then return 'stayed' end
  if index == job.preferred then return 'preferred' end
  if bound == 0 then return job.why end
  if not used_of[bound] then look_at(bound) end
  local why = job.why
  if why == 'full' and (slots_of[bound] == 0 or used_of[bound] < slots_of[bound]) then why = 'closed' end
  return why, string.format(' %s %d/%d', ARGV[NODE + 2 * bound - 1], used_of[bound], slots_of[bound])
end

-- The kind of the first limit that holds the job back.
local function limit_of(limits)
  for kind, index, most in string.gmatch(limits, '(%a+):(%d+):(%d+)') do
    if redis.call('SCARD', KEYS[LIMIT_KEYS + index]) >= tonumber(most) then return kind end
  end
end

-- Count the job against its limits. Returns their kinds, for `release`.
local function hold(limits, job_id)
  local kinds = {}
  for kind, index in string.gmatch(limits, '(%a+):(%d+):%d+') do
    redis.call('SADD', KEYS[LIMIT_KEYS + index], job_id)
    kinds[#kinds + 1] = kind
  end
  return table.concat(kinds, ' ')
end

local function find(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
  return ''
end

-- Append the assignment to the inbox: the one write that can fail, so it comes before all others.
local function assign(index, body, job)
  return redis.pcall('XADD', KEYS[NODE_KEYS + 2 * index], '*', 'job', find(body, 'job'), 'payload', find(body, 'payload'),
    'job_id', job.job_id, 'session', job.session, 'tenant', job.tenant, 'reply_to', job.reply_to, 'entry', job.entry,
    'token', job.token, 'boot', ARGV[NODE + 2 * index], 'lease_until_ms', job.lease_until_ms, 'attempt', job.attempt,
    'life', job.life, 'submitted_ms', job.submitted_ms, 'policy', job.policy, 'decision', job.decision)
end

-- The record of a placed job. What is empty is left out, because a record costs the server more than all else here.
local function record_of(index, job, inbox_id)
  local record = {'state', 'reserved', 'entry', job.entry, 'session', job.session, 'submitted_ms', job.submitted_ms,
    'node', ARGV[NODE + 2 * index - 1], 'boot', ARGV[NODE + 2 * index], 'token', job.token, 'inbox_id', inbox_id,
    'lease_until_ms', job.lease_until_ms, 'policy', job.policy, 'decision', job.decision}
  local function add(field, value)
    if value ~= '' then record[#record + 1], record[#record + 2] = field, value end
  end
  add('tenant', job.tenant)
  add('reply_to', job.reply_to)
  return record
end

local function reserve(number, item)
  local entry_id, partition_index, policy_index = ARGV[item], tonumber(ARGV[item + 1]), tonumber(ARGV[item + 2])
  local session, candidates, limits = ARGV[item + 4], ARGV[item + 7], ARGV[item + 17]
  local job_key, session_key = KEYS[JOB_KEYS + 2 * number - 1], KEYS[JOB_KEYS + 2 * number]
  local jobs_key, partition = KEYS[3 + partition_index], ARGV[PARTITION + 2 * partition_index - 1]
  local entry = partition .. '/' .. entry_id

  if not owned[partition_index] then blocked[session] = true return {'fenced'} end
  local record = {}
  local fields = redis.call('HGETALL', job_key)
  for i = 1, #fields, 2 do
    record[fields[i]] = fields[i + 1]
  end
  local state, token = record.state, tonumber(record.token or 0)
  if state and record.entry == entry and state ~= 'queued' then
    -- Placed before, wherever it is now; or ended without ever having been placed.
    if (record.node or '') == '' then return {'gone'} end
    return {'reserved', record.node, record.token or '0', -1}
  end
  if state and record.session ~= session then return {'job_id_taken'} end
  if state and record.entry ~= entry then
    redis.call('XDEL', jobs_key, entry_id)
    return {'duplicate'}
  end
  local body = redis.call('XRANGE', jobs_key, entry_id, entry_id)[1]
  if not body then return {'gone'} end
  if record.cancel then return {'cancelling'} end
  if blocked[session] then return {'behind'} end
  local limit = limits ~= '' and limit_of(limits)
  if limit then blocked[session] = true return {'limited', limit} end

  token = math.max(last_token + 1, token + 1)
  local job = {
    job_id = ARGV[item + 3], session = session, tenant = ARGV[item + 5], reply_to = ARGV[item + 6], entry = entry,
    token = string.format('%.0f', token), submitted_ms = record.submitted_ms or submitted(entry_id), life = record.life or '1',
    policy = policy_of[policy_index], lease_until_ms = lease_until_ms_of[policy_index],
    attempt = state and 1 + (record.attempts or 0) + (record.crashes or 0) + (record.not_started or 0) or '1',
    bound = tonumber(ARGV[item + 8]), preferred = tonumber(ARGV[item + 9]), why = ARGV[item + 10],
  }
  local stored_node, before = ARGV[item + 13], homes[session]
  if before and ARGV[item + 16] == '1' then
    job.bound, job.why, stored_node = before, 'full', ARGV[NODE + 2 * before - 1]
    candidates = (job.preferred > 0 and job.preferred .. ';' or '') .. before .. ';' .. candidates
  elseif before then
    stored_node = ''
  end
  local poisoned, index, inbox_id, why, seen
  repeat
    index = choose(candidates, poisoned)
    if not index then blocked[session] = true return {'full'} end
    why, seen = explain(index, job)
    job.decision = why .. (seen or '') .. ARGV[item + 11]
    inbox_id = assign(index, body[2], job)
    if type(inbox_id) == 'table' then
      poisoned, inbox_id = poisoned or {}, nil
      poisoned[index] = true
    end
  until inbox_id

  last_token = token
  local node = ARGV[NODE + 2 * index - 1]
  redis.call('XDEL', jobs_key, entry_id)
  redis.call('ZADD', KEYS[NODE_KEYS + 2 * index - 1], job.lease_until_ms, job.job_id)
  redis.call('HSET', job_key, unpack(record_of(index, job, inbox_id)))
  if limits ~= '' then redis.call('HSET', job_key, 'held', hold(limits, job.job_id)) end
  local binding, home = ARGV[item + 12], why == ARGV[item + 15] and job.bound or index
  local home_node = ARGV[NODE + 2 * home - 1]
  if binding ~= '' then
    homes[session] = home
    if home_node ~= stored_node then
      redis.call('SET', session_key, binding .. ' ' .. home_node .. ' ' .. ARGV[item + 14], 'PX', session_ttl_ms)
    end
  end
  used_of[index] = used_of[index] + 1
  if used_of[index] >= slots_of[index] then redis.call('SREM', open_key, node) end
  return {'reserved', node, job.token, used_of[index], slots_of[index], home_node}
end

local number = 0
for item = FIRST_JOB + 1, #ARGV, JOB do
  number = number + 1
  answers[number + 1] = reserve(number, item)
end
return answers
