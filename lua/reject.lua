#!lua flags=allow-oom
-- reject: the owner of a partition refuses entries: each is dead with its reason, or cancelled.
-- KEYS[1] {cell}:owners hash   KEYS[2] {cell}:dead stream   KEYS[3] {cell}:results stream
-- KEYS[4..] an entry each: {cell}:jobs:<p> stream, {cell}:job:<job_id> hash, {cell}:results:<reply_to> stream
-- ARGV[1] retention_ms   ARGV[2] dead_retention_ms   ARGV[3] results_max   ARGV[4] document_bytes_max
-- ARGV[5] payload_bytes_max   ARGV[6] other_bytes_max: what is kept of a body, and of fields that are none of ours
-- ARGV[7..] items: partition, epoch, entry_id, job_id, session, tenant, reply_to, reason, detail
-- RETURNS {now_ms, answer, ...}, one an entry: {"rejected"} | {"fenced"} | {"duplicate"} | {"gone"} | {"busy", why}
-- INVARIANT only an entry that still exists is rejected, and only by the owner. "duplicate": the record under this id is
--           another entry's, nothing is changed; the caller rejects again under the entry's generated id.
local owners_key, dead_key, results_key = KEYS[1], KEYS[2], KEYS[3]
local retention_ms, dead_retention_ms, results_max = ARGV[1], ARGV[2], ARGV[3]
local document_bytes_max, payload_bytes_max, other_bytes_max = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local LARGE_BYTES, ARGUMENTS_MAX = 2 ^ 20, 4000
local FIELDS = {'state', 'entry', 'life', 'attempts', 'submitted_ms', 'holder', 'crashes', 'not_started', 'nonce',
  'session'}
local DETAIL = 8 -- where in what is known of an entry the detail is

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = string.format('%.0f', now_ms)
local answers, feed, reply_keys = {now_ms}, {}, {}

-- INCLUDE streams
-- INCLUDE outcomes
-- INCLUDE endings
-- INCLUDE transitions

local OURS = {job_id = true, session = true, partition = true, tenant = true, reason = true, detail = true, attempts = true,
  crashes = true, not_started = true, life = true, submitted_ms = true, avoid = true, entry = true}

-- The fields of a bad entry go into the dead stream as they came, whatever they are, but no more of them than a good entry
-- may have. Returns how many bytes that leaves out.
local function add_fields(arguments, fields)
  local room, other_room, left_out = {job = document_bytes_max, payload = payload_bytes_max}, other_bytes_max, 0
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    local size, fits = #name + #value, #arguments <= ARGUMENTS_MAX
    if fits and room[name] then
      local kept = string.sub(value, 1, room[name])
      room[name] = room[name] - #kept
      left_out = left_out + #value - #kept
      arguments[#arguments + 1], arguments[#arguments + 2] = name, kept
    elseif fits and not OURS[name] and size <= other_room then
      other_room = other_room - size
      arguments[#arguments + 1], arguments[#arguments + 2] = name, value
    elseif not OURS[name] then
      left_out = left_out + size
    end
  end
  return left_out
end

-- The entry, followed by what is known of it. Returns the id in the dead stream, nil when it takes none, and the detail.
local function bury(fields, known)
  local arguments, detail = {}, known[DETAIL]
  local left_out = add_fields(arguments, fields)
  if left_out > 0 then detail = detail .. '; ' .. string.format('%.0f', left_out) .. ' bytes of it are not kept' end
  known[DETAIL] = detail
  for _, value in ipairs(known) do
    arguments[#arguments + 1] = value
  end
  local id = redis.pcall('XADD', dead_key, '*', unpack(arguments))
  if left_out > LARGE_BYTES then collectgarbage() end
  if type(id) == 'table' then return nil end
  return id, detail
end

local function reject(jobs_key, job_key, reply_key, item)
  local partition, epoch, entry_id, job_id = ARGV[item], ARGV[item + 1], ARGV[item + 2], ARGV[item + 3]
  local session, tenant, reply_to, reason, detail = ARGV[item + 4], ARGV[item + 5], ARGV[item + 6], ARGV[item + 7], ARGV[item + 8]
  local entry = partition .. '/' .. entry_id
  local held = redis.call('HGET', owners_key, partition)
  if not held or string.match(held, '^%S+') ~= epoch then return {'fenced'} end
  local record, values = {}, redis.call('HMGET', job_key, unpack(FIELDS))
  for i, name in ipairs(FIELDS) do
    record[name] = values[i] or nil
  end
  local cancelled = reason == 'cancelled'
  local state = next_state(record.state, cancelled and 'rejected_cancelled' or 'rejected')
  if not state then return {record.entry == entry and 'rejected' or 'duplicate'} end
  -- As in `reserve`: of a job that was not placed yet the entry that was read first counts.
  local is_first = not record.holder and record.session == session
  if record.state and record.entry ~= entry and not is_first then return {'duplicate'} end
  local body = redis.call('XRANGE', jobs_key, entry_id, entry_id)[1]
  if not body then return {'gone'} end

  local entered_ms = math.min(tonumber(string.match(entry_id, '^%d+')), now_ms)
  record.submitted_ms = record.submitted_ms or string.format('%.0f', entered_ms)
  local dead_id
  if not cancelled then
    local told
    local node = string.match(record.holder or '', '^(%S+) %S+$') or ''
    dead_id, told = bury(body[2], {'job_id', job_id, 'submitted_ms', record.submitted_ms, 'reason', reason,
      'detail', detail, 'session', session, 'partition', partition, 'tenant', tenant, 'node', node,
      'attempts', record.attempts or '0', 'crashes', record.crashes or '0', 'not_started', record.not_started or '0',
      'life', record.life or '1'})
    if not dead_id then return {'busy', 'no stream takes the body'} end
    detail = told
  end
  redis.call('XDEL', jobs_key, entry_id)
  local keep_ms = cancelled and retention_ms or dead_retention_ms
  local ending = {'state', state, 'reason', reason, 'session', session, 'entry', entry}
  feed[#feed + 1] = end_job(job_key, job_id, record, ending, now_text, detail, keep_ms, dead_id)
  reply_keys[#reply_keys + 1] = reply_key
  return {'rejected'}
end

local key_index = 4
for item = 7, #ARGV, 9 do
  answers[#answers + 1] = reject(KEYS[key_index], KEYS[key_index + 1], KEYS[key_index + 2], item)
  key_index = key_index + 3
end

tell_outcomes(feed, reply_keys, results_key, results_max, retention_ms, now_ms)
return answers
