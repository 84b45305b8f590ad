#!lua flags=allow-oom
-- reserve: place a batch of jobs: check order and room, take a slot under a lease, hand the body to the node.
-- KEYS[1] {cell}:owners             hash: partition -> "epoch owner until_ms lease_ms"
-- KEYS[2] {cell}:capacity           hash: node -> "slots boot reason"
-- KEYS[3] {cell}:open               set
-- KEYS[4] {cell}:counted            string: "version kind kind"
-- KEYS[5..P+4] {cell}:jobs:<p>      stream, one a partition
-- then a node each (N): {cell}:slots:<node> zset, {cell}:inbox:<node> stream
-- then a job each (J): {cell}:job:<job_id> hash, {cell}:session:<id> string
-- then a limit each: {cell}:held:<kind>:<id> zset: job_id -> its max
-- ARGV[1..4] msgpack values, one after the other and in no array: Lua makes a table best when all of it is there at once
--   ARGV[1] session_ttl_ms; arrays: partitions, an epoch each, policies (the text that a record carries), a time to start
--     each; version of the snapshot
--   ARGV[2] all nodes, then all their boots
--   ARGV[3] candidates of all jobs: node indices, 0 between groups; the freest of the first group that has room is taken
--   ARGV[4] jobs: entry_id, partition index, policy index, job_id, session, tenant, reply_to, first, last (which of the
--     candidates are its own), bound (a node index, 0: none), why (it is elsewhere than on `bound`; see `explain`),
--     binding (empty: leave it), stored_node (the node in the stored binding, empty: write it anew), variant,
--     unread (the caller does not know whether the session is bound: if it is, that is the answer; it is too when an
--     earlier call placed an earlier job of the session, for the caller may know an older binding then),
--     follows (before its candidates it is tried where the session's last job of this call went),
--     body (where in ARGV document and payload of the entry are; 0: to be read from it),
--     rare: false, or a map with what few jobs have:
--       preferred (the index of the node that it asks for), note (what else there is to say of the decision),
--       keeps (the session stays bound to `bound` although it is placed elsewhere, if that is why),
--       together (why it is elsewhere than the session's last job of this call, which it does not follow),
--       limits ({{kind, index, max}, ...}, all that it counts for; index counts the limits' keys; max 0: its pool has none).
--   ARGV[5..] bodies. An index counts from 1; whatever may have more than nine digits is text.
-- RETURNS {now_ms, answer, ...}, a text a job (home: where its session is bound; filled: that was the last slot):
--   "reserved <node> <token> <used> <home>" | "reserved <node> <token> <used> <home> filled" | "reserved <node> <token> -1", to a
--   repeat | "full" | "limited <kind>" | "outdated <counted>" | "bound" | "behind" | "fenced" | "duplicate" | "gone"
--   | "job_id_taken" | "cancelling" | "mismatch <session> <tenant> <reply_to>": it was submitted with these (each may be empty), and the document says others
-- INVARIANT used slots never exceed the capacity of the boot that the caller saw; a job holds at most one slot; no limit
--           counts more jobs than it allows, that of a session no more than any of those that run does, and while a kind is
--           counted none is placed that does not count; jobs of a session are placed in the order given; the body is in
--           exactly one stream; the same entry gets the same answer.
local KEYS, ARGV, redis, string = KEYS, ARGV, redis, string -- a local is found faster than a global
local owners_key, capacity_key, open_key, counted_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local session_ttl_ms, partitions, epochs, policies, starts_ms, version = cmsgpack.unpack(ARGV[1])
local nodes, candidates, jobs = {cmsgpack.unpack(ARGV[2])}, {cmsgpack.unpack(ARGV[3])}, {cmsgpack.unpack(ARGV[4])}
local JOB, NOTHING, TOKEN_MAX = 18, {}, 2 ^ 52 -- no clock says more; far above it a number of Lua is not exact
local NODES, JOBS = #nodes / 2, #jobs / JOB
local PARTITION_KEYS, NODE_KEYS = 4, 4 + #partitions
local JOB_KEYS, LIMIT_KEYS = NODE_KEYS + 2 * NODES, NODE_KEYS + 2 * NODES + 2 * JOBS
local RESERVATION, DECISION = 10, 14 -- where in an assignment the texts are that depend on the node

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local last_token = now_us - 1
local answers, blocked, homes, placed_before = {now_ms}, {}, {}, {}
local INBOX_KEPT = 128

-- INCLUDE streams
-- INCLUDE bodies
-- INCLUDE transitions

local owned = redis.call('HMGET', owners_key, unpack(partitions))
for i = 1, #partitions do
  owned[i] = owned[i] and string.match(owned[i], '^%S+') == epochs[i] or false
end

local lease_until_ms_of, lengths = {}, {} -- a policy: when a first lease that begins now ends, and how long it is
for i = 1, #policies do
  lengths[i] = string.format('%.0f', starts_ms[i])
  lease_until_ms_of[i] = string.format('%.0f', now_ms + starts_ms[i])
end

-- When a job was first submitted, by the id of its entry, but never in the future.
local function submitted(entry_id)
  local ms = string.match(entry_id, '^%d+')
  return tonumber(ms) <= now_ms and ms or string.format('%.0f', now_ms)
end

-- Slots of a candidate, 0 when it takes no work from this caller; counted once a call, and only when it is looked at.
local capacities = NODES > 0 and redis.call('HMGET', capacity_key, unpack(nodes, 1, NODES)) or NOTHING
local slots_of, used_of = {}, {}
local function look_at(index)
  local slots, boot = string.match(capacities[index] or '', '^(%S+) (%S+)')
  slots_of[index] = boot == nodes[NODES + index] and tonumber(slots) or 0
  used_of[index] = redis.call('ZCARD', KEYS[NODE_KEYS + 2 * index - 1])
end

-- The node of the first group with room that would be least used afterwards, nil when none has room.
local function choose(indices, first, last, except)
  local best, least
  for i = first, last do
    local index = indices[i]
    if index == 0 then
      if best then break end
    else
      if not used_of[index] then look_at(index) end
      local used, slots = used_of[index], slots_of[index]
      if used < slots and not (except and except[index]) then
        local use = (used + 1) / slots
        if not best or use < least then best, least = index, use end
      end
    end
  end
  return best
end

-- Why the job is where it is: one word, and of the node that its session is bound to the slots at this decision.
-- Also whether that node takes no work at all (`closed`), which a full one does.
local function explain(index, bound, why, preferred)
  if index == bound then return 'stayed' end
  if index == preferred then return 'preferred' end
  if bound == 0 then return why end
  if not used_of[bound] then look_at(bound) end
  if why == 'full' and (slots_of[bound] == 0 or used_of[bound] < slots_of[bound]) then why = 'closed' end
  return why, string.format(' %s %d/%d', nodes[bound], used_of[bound], slots_of[bound])
end

-- What the cell counts: from which snapshot on the limits are in force, and the kinds of which there is one.
local counted = redis.call('GET', counted_key)
local counted_version = counted and tonumber(string.match(counted, '^%d+')) or 0

-- Whether the caller does not know yet what is counted: it has an earlier snapshot, or does not count the job for a kind.
local function is_outdated(limits, tenant)
  if counted_version > tonumber(version) then return true end
  local names = {}
  for i = 1, #limits do
    names[limits[i][1]] = true
  end
  for kind in string.gmatch(counted, '%a+') do
    if not names[kind] and (kind == 'session' or kind == 'tenant' and tenant ~= '') then return true end
  end
end

-- Whether so many jobs are as many as one of those that run allows beside itself.
local function is_protected(held_key, count)
  local least = redis.call('ZRANGEBYSCORE', held_key, '(0', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
  return least and count >= tonumber(least)
end

-- The kind of the first limit that holds the job back: its own, or for a session that of a job that runs.
local function limit_of(limits)
  for i = 1, #limits do
    local kind, index, most = unpack(limits[i])
    if most > 0 or kind == 'session' then
      local held_key = KEYS[LIMIT_KEYS + index]
      local count = redis.call('ZCARD', held_key)
      if most > 0 and count >= most then return kind end
      if count > 0 and kind == 'session' and is_protected(held_key, count) then return kind end
    end
  end
end

-- Count the job against its limits. Returns their kinds, for `release`.
local function hold(limits, job_id)
  local kinds = {}
  for i = 1, #limits do
    local kind, index, most = unpack(limits[i])
    redis.call('ZADD', KEYS[LIMIT_KEYS + index], most, job_id)
    kinds[i] = kind
  end
  return table.concat(kinds, ' ')
end

-- Document and payload of an intake entry, nothing when it is gone.
local function read_body(jobs_key, entry_id)
  local entry = redis.call('XRANGE', jobs_key, entry_id, entry_id)[1]
  if not entry then return end
  return body_of(entry)
end

local function add(fields, name, value)
  fields[#fields + 1], fields[#fields + 2] = name, value
end

-- Append an assignment to the inbox of the freest node that takes it: the one write that can fail, so it comes before all
-- others. lead: nodes that are tried before the candidates. Returns the node's index, the id in its inbox, and why there;
-- nothing when no node has room.
local function assign(assignment, token, terms, lead, first, last, bound, why, rare)
  local poisoned, made_anew
  repeat
    local index = lead and choose(lead, 1, #lead, poisoned) or choose(candidates, first, last, poisoned)
    if not index then return end
    local decided, seen = explain(index, bound, why, rare.preferred)
    assignment[RESERVATION] = token .. ' ' .. nodes[NODES + index] .. ' ' .. terms
    assignment[DECISION] = decided .. (seen or '') .. (rare.note or '')
    local inbox_id = redis.pcall('XADD', KEYS[NODE_KEYS + 2 * index], '*', unpack(assignment))
    if type(inbox_id) ~= 'table' then return index, inbox_id, decided end
    -- An inbox that takes no entry any more is made anew, once, and tried again; a long one is left to the reaper.
    poisoned, made_anew = poisoned or {}, made_anew or {}
    poisoned[index] = made_anew[index] or not make_anew(KEYS[NODE_KEYS + 2 * index], INBOX_KEPT, now_ms, true)
    made_anew[index] = true
  until false
end

-- Write what is new in the record of a placed job. Where it came from is written once. Here and in the assignment words
-- that belong together are one text, because each field costs the server more than a word.
local function write_record(job_key, state, index, inbox_id, length_text, token, policy, decision, entry, session,
  submitted_ms, before)
  local holder, assignment = nodes[index] .. ' ' .. token, nodes[NODES + index] .. ' ' .. inbox_id .. ' ' .. length_text
  if before.entry == entry and before.submitted_ms then
    redis.call('HSET', job_key, 'state', state, 'holder', holder, 'assignment', assignment, 'policy', policy,
      'decision', decision)
  else
    redis.call('HSET', job_key, 'state', state, 'holder', holder, 'assignment', assignment, 'policy', policy,
      'decision', decision, 'entry', entry, 'session', session, 'submitted_ms', submitted_ms)
  end
end

-- Write what few records have, or were given at submission.
local function write_rare(job_key, job_id, tenant, reply_to, limits, before)
  if tenant ~= (before.tenant or '') then redis.call('HSET', job_key, 'tenant', tenant) end
  if reply_to ~= (before.reply_to or '') then redis.call('HSET', job_key, 'reply_to', reply_to) end
  if limits then redis.call('HSET', job_key, 'held', hold(limits, job_id)) end
end

-- What the record answers, whoever asks; nil when the job may be placed. state: that it comes to, if it may.
local function answer_of(record, state, entry, session, tenant, reply_to, jobs_key, entry_id)
  if not record.state and state then return end
  if record.entry == entry and not state then
    -- Placed before, wherever it is now; or ended without having been placed since it came into the intake.
    if record.state ~= 'reserved' and not record.last_ending then return 'gone' end
    local node, token = string.match(record.holder or '', '^(%S+) (%d+)$')
    if not node then return 'gone' end
    return 'reserved ' .. node .. ' ' .. token .. ' -1'
  end
  local before_session, before_tenant, before_reply_to = record.session or '', record.tenant or '', record.reply_to or ''
  if record.entry == entry then
    -- What was left out at the submission is as the document says.
    if before_session == session and (before_tenant == tenant or before_tenant == '')
      and (before_reply_to == reply_to or before_reply_to == '') then
      return
    end
    return 'mismatch ' .. before_session .. ' ' .. before_tenant .. ' ' .. before_reply_to
  end
  if before_session ~= session then return 'job_id_taken' end
  -- Nothing of the job was placed yet: it is the entry that was read first, and the record follows it.
  if state and not record.holder then return end
  redis.call('XDEL', jobs_key, entry_id)
  return 'duplicate'
end

-- The answer for a job that is not placed now, and so holds back what comes after it in its session.
local function wait(session, answer)
  blocked[session] = true
  return answer
end

-- Bind the session to a node. Not written when it is stored so.
local function bind(session_key, session, binding, home, stored_node, variant)
  if binding == '' then return end
  homes[session] = home
  local node = nodes[home]
  if node ~= stored_node then
    redis.call('SET', session_key, binding .. ' ' .. node .. ' ' .. variant, 'PX', session_ttl_ms)
  end
end

-- Which attempt this one is, as text.
local function attempt_of(record)
  local attempts, crashes, not_started = tonumber(record.attempts), tonumber(record.crashes), tonumber(record.not_started)
  local earlier = (attempts or 0) + (crashes or 0) + (not_started or 0)
  return earlier == 0 and '1' or string.format('%d', earlier + 1)
end

-- The token after the one of an earlier reservation. One that no script has written is none.
local function token_after(holder)
  local token = tonumber(string.match(holder, '^%S+ (%d+)$'))
  return token and token < TOKEN_MAX and token + 1 or 0
end

local function reserve(number)
  local entry_id, partition_index, policy_index, job_id, session, tenant, reply_to, first, last, bound, why, binding,
    stored_node, variant, unread, follows, body, rare = unpack(jobs, JOB * number - JOB + 1, JOB * number)
  rare = rare or NOTHING
  local job_key, session_key = KEYS[JOB_KEYS + 2 * number - 1], KEYS[JOB_KEYS + 2 * number]
  local jobs_key, entry = KEYS[PARTITION_KEYS + partition_index], partitions[partition_index] .. '/' .. entry_id

  if not owned[partition_index] then return wait(session, 'fenced') end
  local record, fields = {}, redis.call('HGETALL', job_key)
  for i = 1, #fields, 2 do
    record[fields[i]] = fields[i + 1]
  end
  local state = next_state(record.state, 'reserved')
  local answer = answer_of(record, state, entry, session, tenant, reply_to, jobs_key, entry_id)
  if answer then
    -- Placed by an earlier call, perhaps by this one, whose answer was lost: the caller may know an older binding.
    placed_before[session] = placed_before[session] or record.entry == entry
    return answer
  end
  local document, payload = ARGV[body], ARGV[body + 1]
  if body == 0 then
    document, payload = read_body(jobs_key, entry_id)
    if not document then return 'gone' end
  end
  if record.cancel then return 'cancelling' end
  if blocked[session] then return 'behind' end
  if counted and is_outdated(rare.limits or NOTHING, tenant) then return wait(session, 'outdated ' .. counted) end
  local before = homes[session]
  local is_unread = unread or placed_before[session]
  if is_unread and not before and redis.call('EXISTS', session_key) == 1 then return wait(session, 'bound') end
  local limit = rare.limits and limit_of(rare.limits)
  if limit then return wait(session, 'limited ' .. limit) end

  local token = last_token + 1
  if record.holder then token = math.max(token, token_after(record.holder)) end
  local token_text, policy = string.format('%.0f', token), policies[policy_index]
  local submitted_ms = record.submitted_ms or submitted(entry_id)
  local terms = lease_until_ms_of[policy_index] .. ' ' .. entry .. ' ' .. attempt_of(record) .. ' ' .. (record.life or '1')
    .. ' ' .. submitted_ms .. ' ' .. lengths[policy_index]
  local assignment = {'job', document, 'payload', payload, 'job_id', job_id, 'session', session, 'reservation', '',
    'policy', policy, 'decision', ''}
  if tenant ~= '' then add(assignment, 'tenant', tenant) end
  if reply_to ~= '' then add(assignment, 'reply_to', reply_to) end
  local lead
  if before and follows then
    bound, why, stored_node = before, 'full', nodes[before]
    lead = rare.preferred and {rare.preferred, 0, before} or {before}
  elseif before then
    stored_node = ''
    if before ~= bound then bound, why = 0, rare.together or why end
  end
  local index, inbox_id, decided = assign(assignment, token_text, terms, lead, first, last, bound, why, rare)
  if not index then return wait(session, 'full') end
  if redis.pcall('XDEL', jobs_key, entry_id) ~= 1 then -- also when there is no stream any more
    redis.call('XDEL', KEYS[NODE_KEYS + 2 * index], inbox_id)
    return 'gone'
  end

  last_token = token
  redis.call('ZADD', KEYS[NODE_KEYS + 2 * index - 1], lease_until_ms_of[policy_index], job_id)
  write_record(job_key, state, index, inbox_id, lengths[policy_index], token_text, policy, assignment[DECISION], entry,
    session, submitted_ms, record)
  write_rare(job_key, job_id, tenant, reply_to, rare.limits, record)
  local home = decided == rare.keeps and bound > 0 and bound or index
  bind(session_key, session, binding, home, stored_node, variant)
  local used = used_of[index] + 1
  used_of[index] = used
  local placed = 'reserved ' .. nodes[index] .. ' ' .. token_text .. ' ' .. used .. ' ' .. nodes[home]
  if used < slots_of[index] then return placed end
  redis.call('SREM', open_key, nodes[index])
  return placed .. ' filled'
end

for number = 1, JOBS do
  answers[number + 1] = reserve(number)
end
return answers
