#!lua flags=allow-oom
-- release: end reservations: the slot is free, and the outcome is recorded, or the job goes back.
-- KEYS[1] {cell}:capacity  hash     KEYS[2] {cell}:open     set      KEYS[3] {cell}:freed  stream
-- KEYS[4] {cell}:results   stream   KEYS[5] {cell}:delayed  zset     KEYS[6] {cell}:parked stream
-- KEYS[7] {cell}:dead      stream
-- KEYS[8..] {cell}:jobs:<p> stream, one a partition (P); then a node each (N): {cell}:slots:<node> zset, {cell}:inbox:<node>
--   stream; then a job each: {cell}:job:<job_id> hash, {cell}:result:<job_id> string, {cell}:results:<reply_to> stream,
--   {cell}:held:session:<id> zset, {cell}:held:tenant:<id> zset
-- ARGV[1] P   ARGV[2] N   ARGV[3] retention_ms   ARGV[4] dead_retention_ms   ARGV[5] not_started_max   ARGV[6] results_max
-- ARGV[7] freed_max   ARGV[8] result_inline_bytes_max   then P x partition, N x node
-- then a job each: partition index, node index, job_id, session, tenant, reply_to, token,
--   verdict (finish | retry | expire | reboot | give_back | dead), boot of the caller, delay_ms, state (completed | failed),
--   reason, detail, content_type, result
-- RETURNS {now_ms, answer, ...}, one a job: {"released", state} | {"stale", token} | {"unknown"} | {"busy", why} | {"moved"}
--         | {"invalid", why}: a value of this item can be none; an error when the call itself cannot be read
-- INVARIANT a slot is freed exactly once; `expire` of a lease that lies further ahead than its own length cuts it; the body
--           is in exactly one stream or the job is terminal; a repeat of the last ending (token and verdict) gives the same
--           answer, every other ending without the slot is stale.
local KEYS, ARGV, redis, string = KEYS, ARGV, redis, string -- a local is found faster than a global
local capacity_key, open_key, freed_key, results_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local delayed_key, parked_key, dead_key = KEYS[5], KEYS[6], KEYS[7]
local partitions, nodes = tonumber(ARGV[1]) or 0, tonumber(ARGV[2]) or 0 -- looked at in `fault_of_call`
local retention_ms, dead_retention_ms, not_started_max = ARGV[3], ARGV[4], tonumber(ARGV[5])
local results_max, freed_max, result_inline_bytes_max = ARGV[6], ARGV[7], tonumber(ARGV[8])
local NODE_KEYS, JOB_KEYS, JOB = 7 + partitions, 7 + partitions + 2 * nodes, 15
local KEYS_A_JOB, UNPACKED_MAX = 5, 1000
local RESULT_KEY, REPLY_KEY, HELD_KEYS = 1, 2, {session = 3, tenant = 4} -- of a job, counted from its first key
local COUNTERS = {'attempts', 'crashes', 'not_started'}
local VERDICTS = {finish = true, retry = true, expire = true, reboot = true, give_back = true, dead = true}
local STATES = {completed = true, failed = true}
local JOBS_MAX, DELAY_MS_MAX = 128, 1e12
local REASON_BYTES_MAX, DETAIL_BYTES_MAX = 64, 4096 -- they are cut
local CONTENT_TYPE_BYTES_MAX, RESULT_BYTES_MAX = 128, 1048576
local LEAST = {0, 0, 1, 1, 0, 1000, 1000, 0} -- nobody may cut a feed shorter that many read

local CELL = string.sub(capacity_key, 1, -9) -- what its keys begin with
local OF_JOB = CELL .. 'job:'

-- INCLUDE values

local function wrong_key(index, expected) return wrong('KEYS[' .. index .. ']', KEYS[index], expected) end

-- What is wrong with the call, nil if nothing is. Of its keys those are looked at that all its items share.
local function fault_of_call()
  for i = 1, 8 do
    if not whole(ARGV[i], LEAST[i], 1e15) then
      local names = {'P', 'N', 'retention_ms', 'dead_retention_ms', 'not_started_max', 'results_max', 'freed_max',
        'result_inline_bytes_max'}
      return wrong(names[i], ARGV[i], 'a whole number from ' .. LEAST[i])
    end
  end
  local items = (#ARGV - 8 - partitions - nodes) / JOB
  if items ~= math.floor(items) or items < 0 then
    return wrong('number of arguments', #ARGV, '8 + P + N, and ' .. JOB .. ' a job')
  elseif items > JOBS_MAX then
    return wrong('number of jobs', items, JOBS_MAX .. ' at most')
  elseif #KEYS ~= JOB_KEYS + KEYS_A_JOB * items then
    return wrong('number of keys', #KEYS, '7 + P + 2 * N, and ' .. KEYS_A_JOB .. ' a job')
  end
  if capacity_key ~= CELL .. 'capacity' or open_key ~= CELL .. 'open' or freed_key ~= CELL .. 'freed'
    or results_key ~= CELL .. 'results' or delayed_key ~= CELL .. 'delayed' or parked_key ~= CELL .. 'parked'
    or dead_key ~= CELL .. 'dead' then
    return fault_of_names({'capacity', 'open', 'freed', 'results', 'delayed', 'parked', 'dead'})
  end
  for i = 1, partitions do
    local expected = CELL .. 'jobs:' .. ARGV[8 + i]
    if KEYS[7 + i] ~= expected then return wrong_key(7 + i, expected) end
  end
  for i = 1, nodes do
    local node, slots_index = ARGV[8 + partitions + i], NODE_KEYS + 2 * i - 1
    if KEYS[slots_index] ~= CELL .. 'slots:' .. node then return wrong_key(slots_index, CELL .. 'slots:' .. node) end
    if KEYS[slots_index + 1] ~= CELL .. 'inbox:' .. node then return wrong_key(slots_index + 1, CELL .. 'inbox:' .. node) end
  end
end

local fault = fault_of_call()
if fault then return redis.error_reply('ERR release: ' .. fault) end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = string.format('%.0f', now_ms)
local answers, freed_nodes, freed_limits, feed, reply_keys = {now_ms}, {}, {}, {}, {}
local inboxes, looked_at_bytes, LOOKED_AT_BYTES_MAX = {}, 0, 2 ^ 25 -- of so many a server looks at in 50 ms

-- INCLUDE streams
-- INCLUDE outcomes
-- INCLUDE bodies
-- INCLUDE transitions

local function boot_order(boot) return tonumber(string.match(boot, '^(%d+)%-')) or 0 end

-- Counters after this verdict, and where the job goes: queued, delayed or dead (with a reason).
local function judge(record, verdict, delay_ms, suspect)
  local attempts, crashes, not_started = record.attempts, record.crashes, record.not_started
  local attempts_max, crashes_max = string.match(record.policy or '', '^%S+ %d+ (%d+) (%d+)')
  local reason, detail
  if verdict == 'retry' then
    attempts = attempts + 1
    if attempts >= tonumber(attempts_max or 0) then reason, detail = 'attempts_exhausted', 'failed ' .. attempts .. ' times' end
  elseif suspect then
    -- Its node fell silent with many others: that is no fault of the job.
  elseif verdict == 'expire' or verdict == 'reboot' then
    if record.started_ms then
      crashes = crashes + 1
      if crashes >= tonumber(crashes_max or 0) then reason, detail = 'attempts_exhausted', 'lost with its node ' .. crashes .. ' times' end
    else
      not_started = not_started + 1
      if not_started >= not_started_max then reason, detail = 'attempts_exhausted', 'not started ' .. not_started .. ' times' end
    end
  end
  local waits = delay_ms > 0 and (verdict == 'retry' or verdict == 'give_back')
  local next_state = reason and 'dead' or waits and 'delayed' or 'queued'
  return {state = next_state, attempts = attempts, crashes = crashes, not_started = not_started, reason = reason, detail = detail}
end

-- The first write of an ending, the one that can fail. Returns the id, or nil.
local function append(key, body, job, ...)
  local id = redis.pcall('XADD', key, '*', 'job', body.document, 'payload', body.payload, 'job_id', job.job_id,
    'submitted_ms', job.record.submitted_ms, ...)
  if type(id) == 'table' then return nil end
  return id
end

local function read_body(inbox_key, inbox_id)
  local entry = redis.pcall('XRANGE', inbox_key, inbox_id, inbox_id)[1] -- none, too, if that is no id
  if not entry then return nil end
  local document, payload = body_of(entry)
  return {document = document, payload = payload}
end

-- Slots in use and slots of a node, looked up once a call. Nobody else changes them meanwhile.
local used_of, slots_of = {}, {}
local function count_slots(index, node)
  slots_of[index] = tonumber(string.match(redis.call('HGET', capacity_key, node) or '', '^%S+'))
  used_of[index] = redis.call('ZCARD', KEYS[NODE_KEYS + 2 * index - 1])
  return used_of[index]
end

-- Free what the job held of limits.
local function free_limits(job)
  for kind in string.gmatch(job.record.held, '%a+') do
    local held_key = HELD_KEYS[kind] and KEYS[job.first_key + HELD_KEYS[kind]]
    if held_key and redis.call('ZREM', held_key, job.job_id) == 1 then
      local limit = kind .. ':' .. job[kind]
      if not freed_limits[limit] then
        freed_limits[limit] = true
        freed_limits[#freed_limits + 1] = limit
      end
    end
  end
end

-- Free the slot and what was held of limits; the node is news only if it had no room before.
local function free(job)
  if job.record.held then free_limits(job) end
  local index = job.node_index
  redis.pcall('XDEL', KEYS[NODE_KEYS + 2 * index], job.record.inbox_id)
  local used = used_of[index] or count_slots(index, job.node)
  if redis.call('ZREM', KEYS[NODE_KEYS + 2 * index - 1], job.job_id) == 0 then return end
  used_of[index] = used - 1
  local slots = slots_of[index]
  if slots and used >= slots and used - 1 < slots and redis.call('SADD', open_key, job.node) == 1 then
    freed_nodes[#freed_nodes + 1] = job.node
  end
end

local function go_back(job, after, body)
  local reason = job.reason ~= '' and job.reason or job.verdict
  local queued, delayed = next_state(job.record.state, 'requeued'), next_state(job.record.state, 'parked')
  if not queued or not delayed then return {'stale', job.token} end
  local entry_id = after.state == 'queued' and append(job.jobs_key, body, job, 'avoid', job.avoid)
  local parked_id = not entry_id and append(parked_key, body, job, 'avoid', job.avoid, 'partition', job.partition)
  if not entry_id and not parked_id then return {'busy', 'no stream takes the body'} end
  local state = entry_id and queued or delayed
  free(job)
  redis.call('HSET', job.key, 'state', state, 'attempts', after.attempts, 'crashes', after.crashes,
    'not_started', after.not_started, 'avoid', job.avoid, 'last_ending', job.ending, 'reason', reason,
    'first_id', job.record.first_id or string.match(job.record.entry, '/(.*)$') or '')
  redis.call('HDEL', job.key, 'started_ms', 'held')
  if entry_id then
    redis.call('HSET', job.key, 'entry', job.partition .. '/' .. entry_id)
  else
    -- A body that the intake would not take is tried again a second later.
    local delay_ms = after.state == 'delayed' and job.delay_ms or 1000
    redis.call('ZADD', delayed_key, string.format('%.0f', now_ms + delay_ms), job.job_id)
    redis.call('HSET', job.key, 'parked_id', parked_id, 'delay_ms', string.format('%.0f', delay_ms))
  end
  return {'released', state}
end

-- What the record of an ended job still says of its way, beside how it ended.
local KEPT = {session = true, entry = true, submitted_ms = true, nonce = true, holder = true, decision = true, life = true,
  attempts = true}

local function finish(job, event, after, reason, detail, body)
  local record, dead_id = job.record, nil
  local state = next_state(record.state, event)
  if not state then return {'stale', job.token} end
  if body then
    dead_id = append(dead_key, body, job, 'reason', reason, 'detail', detail, 'session', job.session, 'partition', job.partition,
      'tenant', job.tenant, 'node', job.node, 'attempts', after.attempts, 'crashes', after.crashes,
      'not_started', after.not_started, 'life', record.life)
    if not dead_id then return {'busy', 'no stream takes the body'} end
  end
  free(job)
  local keep_ms = dead_id and dead_retention_ms or retention_ms
  -- What returned nothing leaves nothing.
  local with_result = (state == 'completed' or state == 'failed') and (job.result ~= '' or job.content_type ~= '')
  local dropped = {}
  for i = 1, #record.fields, 2 do
    if not KEPT[record.fields[i]] then
      dropped[#dropped + 1] = record.fields[i]
    end
  end
  for i = 1, #dropped, UNPACKED_MAX do
    redis.call('HDEL', job.key, unpack(dropped, i, math.min(i + UNPACKED_MAX - 1, #dropped)))
  end
  local ended = {'state', state, 'ended_ms', now_text}
  add(ended, 'reason', reason, '')
  add(ended, 'content_type', with_result and job.content_type, '')
  local outcome = {'job_id', job.job_id, 'session', job.session, 'entry', record.entry,
    'submitted_ms', record.submitted_ms, 'node', job.node, 'token', job.token, unpack(ended)}
  add(outcome, 'life', record.life, '1')
  add(outcome, 'attempts', after.attempts, 0)
  add(outcome, 'detail', detail, '')
  if with_result and #job.result <= result_inline_bytes_max then add(outcome, 'result', job.result) end
  feed[#feed + 1], reply_keys[#reply_keys + 1] = outcome, KEYS[job.first_key + REPLY_KEY]
  add(ended, 'last_ending', job.ending)
  if after.attempts ~= record.attempts then add(ended, 'attempts', after.attempts) end
  add(ended, 'dead_id', dead_id)
  redis.call('HSET', job.key, unpack(ended))
  if with_result then redis.call('SET', KEYS[job.first_key + RESULT_KEY], job.result, 'PX', keep_ms) end
  redis.call('PEXPIRE', job.key, keep_ms)
  return {'released', state}
end

-- All fields: of a record, hardly any is not needed.
local function read_record(job_key)
  local fields, record = redis.pcall('HGETALL', job_key), {}
  if fields.err then fields = {} end -- one of another type is none
  for i = 1, #fields, 2 do
    record[fields[i]] = fields[i + 1]
  end
  record.fields = fields
  for i = 1, #COUNTERS do
    record[COUNTERS[i]] = tonumber(record[COUNTERS[i]]) or 0
  end
  record.partition = string.match(record.entry or '', '^%d+')
  record.life = record.life or '1'
  record.node, record.token = string.match(record.holder or '', '^(%S+) (%S+)$')
  record.boot, record.inbox_id, record.first_lease_ms = string.match(record.assignment or '', '^(%S+) (%d+%-%d+) ?(%d*)')
  return record
end

-- No lease lies further ahead than its own length. One that does was written before the clock went back.
local function cut_lease(job, record, slots_key, until_ms)
  local length_ms = tonumber(record.started_ms and string.match(record.policy or '', '^%S+ (%d+)') or record.first_lease_ms)
  if not length_ms or until_ms <= now_ms + length_ms then return end
  redis.call('ZADD', slots_key, 'XX', string.format('%.0f', now_ms + length_ms), job.job_id)
  if record.started_ms and (tonumber(record.started_ms) or 0) > now_ms then
    redis.call('HSET', job.key, 'started_ms', now_text)
  end
end

-- The same of a slot that no record knows: the caller knows how long its lease can be.
local function cut_unknown(job)
  local slots_key = KEYS[NODE_KEYS + 2 * job.node_index - 1]
  local until_ms = tonumber(redis.call('ZSCORE', slots_key, job.job_id) or 0)
  if job.delay_ms == 0 or until_ms <= now_ms + job.delay_ms then return end
  redis.call('ZADD', slots_key, 'XX', string.format('%.0f', now_ms + job.delay_ms), job.job_id)
end

-- The assignments of a node, by their jobs: read once a call. What lies behind too many bytes waits for another call.
local function inbox_of(node_index)
  if inboxes[node_index] then return inboxes[node_index] end
  local ids, after = {}, '-'
  while looked_at_bytes < LOOKED_AT_BYTES_MAX do
    local entry = redis.pcall('XRANGE', KEYS[NODE_KEYS + 2 * node_index], after, '+', 'COUNT', 1)[1]
    if not entry then break end -- also after the highest id, where it is an error
    after, looked_at_bytes = '(' .. entry[1], looked_at_bytes + 100
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'job_id' then ids[entry[2][i + 1]] = entry[1] end
      looked_at_bytes = looked_at_bytes + #entry[2][i + 1]
    end
  end
  inboxes[node_index] = ids
  return ids
end

-- A slot whose job has no record, or one that knows nothing of it any more: it is free at the end of its lease, and without
-- a record what it held too. Nothing says how it ended.
local function forget(job, record)
  local until_ms = redis.call('ZSCORE', KEYS[NODE_KEYS + 2 * job.node_index - 1], job.job_id)
  if until_ms and tonumber(until_ms) > now_ms or record.state and not until_ms then return end
  job.record = {held = not record.state and 'session tenant', inbox_id = inbox_of(job.node_index)[job.job_id] or '0-0'}
  free(job)
end

-- What is wrong with the keys of an item beside that of its record: each is that of one of its ids.
local function fault_of_keys(job)
  local first = job.first_key
  local result_key = CELL .. 'result:' .. job.job_id
  local reply_key = job.reply_to == '' and results_key or results_key .. ':' .. job.reply_to
  local session_key, tenant_key = CELL .. 'held:session:' .. job.session, CELL .. 'held:tenant:' .. job.tenant
  if KEYS[first + RESULT_KEY] ~= result_key then return wrong_key(first + RESULT_KEY, result_key) end
  if KEYS[first + REPLY_KEY] ~= reply_key then return wrong_key(first + REPLY_KEY, reply_key) end
  if KEYS[first + HELD_KEYS.session] ~= session_key then return wrong_key(first + HELD_KEYS.session, session_key) end
  if KEYS[first + HELD_KEYS.tenant] ~= tenant_key then return wrong_key(first + HELD_KEYS.tenant, tenant_key) end
end

-- What is wrong with the values of an item, nil if nothing is. Its ids are compared with the record's later.
local function fault_of(job, item)
  if not VERDICTS[job.verdict] then
    return wrong('verdict', job.verdict, 'finish, retry, expire, reboot, give_back or dead')
  elseif job.verdict == 'finish' and not STATES[job.state] then
    return wrong('state', job.state, 'completed or failed')
  elseif job.verdict == 'reboot' and not string.find(job.boot, '^%d+%-.') then
    return wrong('boot', job.boot, '<number>-<something random>')
  elseif not job.delay_ms then
    return wrong('delay_ms', ARGV[item + 9], 'a whole number of milliseconds, 1000000000000 at most')
  elseif not job.partition then
    return wrong('partition', ARGV[item], 'an index from 1 to P = ' .. partitions)
  elseif not job.node then
    return wrong('node', ARGV[item + 1], 'an index from 1 to N = ' .. nodes)
  elseif job.key ~= OF_JOB .. job.job_id then
    return wrong('job_id', job.job_id, 'that of the key ' .. job.key)
  elseif not string.find(job.token, '^%d+$') then
    return wrong('token', job.token, 'digits')
  elseif job.reason ~= '' and string.find(job.reason, '[^!-~]') then
    return wrong('reason', job.reason, 'one word')
  elseif #job.content_type > CONTENT_TYPE_BYTES_MAX or string.find(job.content_type, '[^ -~]') then
    return wrong('content_type', job.content_type, CONTENT_TYPE_BYTES_MAX .. ' characters of visible ASCII at most')
  elseif #job.result > RESULT_BYTES_MAX then
    return wrong('size of the result', #job.result, RESULT_BYTES_MAX .. ' bytes at most')
  end
  return fault_of_keys(job)
end

-- Why this ending may not be: an answer, or nil.
local function refusal(job, record)
  local is_held = TRANSITIONS[record.state or false] and record.boot -- without an assignment no script has written it
  if job.verdict == 'expire' and not (is_held and record.node == job.node) then
    cut_unknown(job)
    forget(job, record)
  end
  if not record.state then return {'unknown'} end
  if record.last_ending == job.ending then return {'released', record.state} end
  if not is_held or record.token ~= job.token then return {'stale', record.token or '0'} end
  if record.node ~= job.node or record.partition ~= job.partition or record.session ~= job.session
    or (record.tenant or '') ~= job.tenant or (record.reply_to or '') ~= job.reply_to then
    return {'moved'}
  end
  if job.verdict == 'expire' then
    local slots_key = KEYS[NODE_KEYS + 2 * job.node_index - 1]
    local until_ms = tonumber(redis.call('ZSCORE', slots_key, job.job_id) or 0)
    if until_ms > now_ms then
      cut_lease(job, record, slots_key, until_ms)
      return {'busy', 'the lease has not ended'}
    end
  elseif job.verdict == 'reboot' and boot_order(job.boot) <= boot_order(record.boot) then
    return {'busy', 'not a later boot'}
  end
end

local function release(job)
  local record = read_record(job.key)
  local refused = refusal(job, record)
  if refused then return refused end
  job.record = record
  -- A later attempt keeps away from the node, unless the job merely goes back.
  job.avoid = job.verdict == 'give_back' and job.delay_ms == 0 and '' or job.node
  local unchanged = {attempts = record.attempts, crashes = record.crashes, not_started = record.not_started}
  if job.verdict == 'finish' then return finish(job, job.state, unchanged, job.reason, job.detail, nil) end
  if record.cancel then return finish(job, 'cancelled', unchanged, 'cancelled', job.detail, nil) end
  local body = read_body(KEYS[NODE_KEYS + 2 * job.node_index], record.inbox_id)
  local reason = job.verdict == 'expire' and string.match(redis.call('HGET', capacity_key, job.node) or '', '%S+$')
  local after = job.verdict == 'dead' and unchanged or judge(record, job.verdict, job.delay_ms, reason == 'suspect')
  if not body then return finish(job, 'body_lost', after, 'body_lost', 'the inbox entry is missing', nil) end
  if job.verdict == 'dead' then return finish(job, 'given_up', after, job.reason, job.detail, body) end
  if after.state == 'dead' then
    local detail = job.detail ~= '' and (after.detail .. '; last: ' .. job.detail) or after.detail
    return finish(job, 'given_up', after, after.reason, detail, body)
  end
  return go_back(job, after, body)
end

local number = 0
for item = 8 + partitions + nodes + 1, #ARGV, JOB do
  number = number + 1
  local first_key = JOB_KEYS + KEYS_A_JOB * (number - 1) + 1
  local partition_index, node_index = whole(ARGV[item], 1, partitions), whole(ARGV[item + 1], 1, nodes)
  local delay_ms = ARGV[item + 9]
  local job = {
    key = KEYS[first_key], first_key = first_key,
    jobs_key = partition_index and KEYS[7 + partition_index], partition = partition_index and ARGV[8 + partition_index],
    node_index = node_index, node = node_index and ARGV[8 + partitions + node_index],
    job_id = ARGV[item + 2], session = ARGV[item + 3], tenant = ARGV[item + 4], reply_to = ARGV[item + 5],
    token = ARGV[item + 6], verdict = ARGV[item + 7], boot = ARGV[item + 8],
    delay_ms = delay_ms == '0' and 0 or whole(delay_ms, 0, DELAY_MS_MAX),
    state = ARGV[item + 10], reason = string.sub(ARGV[item + 11], 1, REASON_BYTES_MAX),
    detail = string.sub(ARGV[item + 12], 1, DETAIL_BYTES_MAX), content_type = ARGV[item + 13],
    result = ARGV[item + 14], ending = ARGV[item + 6] .. ' ' .. ARGV[item + 7],
  }
  local item_fault = fault_of(job, item)
  answers[number + 1] = item_fault and {'invalid', item_fault} or release(job)
end

tell_outcomes(feed, reply_keys, results_key, results_max, retention_ms, now_ms)
if #freed_limits > 0 then
  tell(freed_key, 0, now_ms, 'MAXLEN', '~', freed_max, '*', 'nodes', table.concat(freed_nodes, ' '),
    'limits', table.concat(freed_limits, ' '))
elseif #freed_nodes > 0 then
  tell(freed_key, 0, now_ms, 'MAXLEN', '~', freed_max, '*', 'nodes', table.concat(freed_nodes, ' '))
end
return answers
