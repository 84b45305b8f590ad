#!lua flags=allow-oom
-- rebuild: a stream whose ids are absurd takes no more entries until a copy of it takes its place; a part of that a call.
-- KEYS[1] {cell}:owners hash
-- KEYS[2] stream: {cell}:jobs:<p>, {cell}:inbox:<node>, {cell}:parked or {cell}:dead
-- KEYS[3] {cell}:rebuilt:<stream>   stream, its copy
-- KEYS[4] {cell}:renamed:<stream>   hash, of absurd ids: those in the copy, and job ids
-- KEYS[5..] {cell}:job:<job_id>     hash, one for each job_id
-- ARGV[1] partition, empty: of none   ARGV[2] epoch of its owner   ARGV[3] field: of a record, names an entry of the stream
-- ARGV[4] bytes_max, copied by a call, or one entry   ARGV[5] renamed_max, ids that one copy changes
-- ARGV[6] above: ms above all ids that were given before, 0: not known
-- ARGV[7..] job_id, of entries whose id will be another one
-- RETURNS {"open"}: nothing to do | {"copying"}: again | {"records", job_id, ...}: again, with the records of these too
--         | {"rebuilt", entries, renamed} | {"fenced"}
-- INVARIANT the copy takes the place of the stream in the step that sees that it has all of it: entries under their ids,
--   in their order, then those whose ids were absurd, under new ids, which records name from then on. Anybody goes on
--   where somebody stopped, also two at once. No id is given that the stream gave before. Where more ids are absurd than
--   a copy changes, the next copy of the copy changes others, for all their records are written in one step.
local owners_key, stream_key, copy_key, renamed_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local partition, epoch, field, bytes_max = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local renamed_max, above_ms = tonumber(ARGV[5]), tonumber(ARGV[6])
local JOBS, JOB_KEYS = 6, 4 -- what stands before the jobs
local CLOSED, COPY_TTL_MS = '18446744073709551615-18446744073709551615', 60000
local ENTRY_BYTES, LARGE_BYTES, VALUES_MAX = 100, 2 ^ 20, 7000 -- what an entry costs beside its values; of one call of XADD
local IDS_AT_ONCE, CONSUMER = 1000, 'rebuild'

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- INCLUDE streams

local others = redis.call('HLEN', renamed_key) -- have other ids in the copy

-- A group of the same name, on stream and copy, says that the one is the copy of the other: it goes with its stream, so
-- none is taken for a copy of what came in its place. What the group has pending is what was copied.
local function mark_of(key)
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  for _, group in ipairs(groups.err and {} or groups) do
    local name = value_of(group, 'name')
    if string.find(name, '^rebuild ') then return name end
  end
end

local function pending_of(mark)
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream_key)) do
    if value_of(group, 'name') == mark then return value_of(group, 'pending') end
  end
end

-- Nothing is added from then on, so what was copied stays right.
local function begin(last_id, old_mark)
  local mark = 'rebuild ' .. time[1] .. ' ' .. time[2]
  if last_id ~= CLOSED then redis.call('XSETID', stream_key, CLOSED) end
  if old_mark then redis.call('XGROUP', 'DESTROY', stream_key, old_mark) end
  redis.call('UNLINK', copy_key, renamed_key)
  others = 0
  redis.call('XGROUP', 'CREATE', stream_key, mark, '0')
  redis.call('XGROUP', 'CREATE', copy_key, mark, '0', 'MKSTREAM')
  return mark
end

local function copy(entry)
  local id, fields, bytes = entry[1], entry[2], ENTRY_BYTES
  local is_other = others < renamed_max and is_absurd(id, now_ms)
  -- Of an entry with more values than a call can have, which no script wrote, the first ones are kept.
  local new_id = redis.call('XADD', copy_key, is_other and '*' or id, unpack(fields, 1, math.min(#fields, VALUES_MAX)))
  if is_other then
    others = others + 1
    redis.call('HSET', renamed_key, id, new_id .. ' ' .. (value_of(fields, 'job_id') or ''))
  end
  for i = 1, #fields do
    bytes = bytes + #fields[i]
  end
  return bytes
end

-- Copy from where the last call stopped. Returns whether that was the rest.
local function copy_some(mark)
  local bytes = 0
  while bytes < bytes_max do
    local reply = redis.call('XREADGROUP', 'GROUP', mark, CONSUMER, 'COUNT', 1, 'STREAMS', stream_key, '>')
    local entry = reply and reply[1] and reply[1][2][1]
    if not entry then return true end
    local copied = copy(entry)
    bytes = bytes + copied
    if copied > LARGE_BYTES then
      reply, entry = nil, nil
      collectgarbage()
    end
  end
  return false
end

-- Drop from the copy what was deleted from the stream meanwhile: that is pending all the same. No body is looked at, and
-- nothing that lies behind the last of these.
local function drop_deleted(mark, renamed)
  local cursor, more = '0-0', pending_of(mark) - redis.call('XLEN', stream_key)
  while more > 0 do
    local found = redis.call('XAUTOCLAIM', stream_key, mark, CONSUMER, 0, cursor, 'COUNT', IDS_AT_ONCE, 'JUSTID')
    for _, id in ipairs(found[3]) do
      redis.call('XDEL', copy_key, renamed[id] and renamed[id].id or id)
      renamed[id] = nil
    end
    cursor, more = found[1], more - #found[3]
    if cursor == '0-0' then return end
  end
end

-- The record that names an entry names its new id.
local function rename(job_key, old_id, new_id)
  local named = redis.pcall('HGET', job_key, field)
  if type(named) ~= 'string' then return end
  local first, last = string.find(named, old_id, 1, true)
  if not first or string.find(named, '^%d', last + 1) or string.find(string.sub(named, 1, first - 1), '%d$') then return end
  redis.call('HSET', job_key, field, string.sub(named, 1, first - 1) .. new_id .. string.sub(named, last + 1))
end

-- What the stream gave before is not given again, for an id names a job that has none: of that the copy has only what is
-- left. Of what was deleted the server knows the highest id. Where that is absurd, and the owner knows nothing either, the
-- clock may have gone back by nearly as much as any is wrong. Returns whether the copy takes entries.
local function raise_last_id()
  local info = redis.call('XINFO', 'STREAM', stream_key)
  local deleted_id, most_ms = value_of(info, 'max-deleted-entry-id') or '0-0', now_ms + AHEAD_MS_MAX - 3600000
  local given_ms = above_ms
  if not is_absurd(deleted_id, now_ms) then
    given_ms = math.max(given_ms, tonumber(string.match(deleted_id, '^%d+')))
  elseif partition ~= '' and above_ms == 0 then
    given_ms = most_ms
  end
  local copied_id = last_id_of(copy_key)
  if is_absurd(copied_id, now_ms) then
    redis.call('XSETID', copy_key, CLOSED, 'MAXDELETEDID', deleted_id) -- for the next copy
    return false
  end
  local copied_ms = tonumber(string.match(copied_id, '^%d+'))
  redis.call('XSETID', copy_key, string.format('%.0f-0', math.max(copied_ms, math.min(given_ms, most_ms)) + 1))
  return true
end

local function rebuild()
  if partition ~= '' then
    local held = redis.call('HGET', owners_key, partition)
    if not held or string.match(held, '^%S+') ~= epoch then return {'fenced'} end
  end
  local mark = mark_of(stream_key)
  if not mark or mark_of(copy_key) ~= mark then
    local last_id = last_id_of(stream_key)
    if not last_id or not is_absurd(last_id, now_ms) then
      redis.call('UNLINK', copy_key, renamed_key)
      return {'open'}
    end
    mark = begin(last_id, mark)
  end
  local is_copied = copy_some(mark)
  redis.call('PEXPIRE', copy_key, COPY_TTL_MS)
  redis.call('PEXPIRE', renamed_key, COPY_TTL_MS)
  if not is_copied then return {'copying'} end

  local job_keys, renamed, missing = {}, {}, {'records'}
  for i = JOBS + 1, #ARGV do
    job_keys[ARGV[i]] = KEYS[JOB_KEYS + i - JOBS]
  end
  local stored = redis.call('HGETALL', renamed_key)
  for i = 1, #stored, 2 do
    local new_id, job_id = string.match(stored[i + 1], '^(%S+) (.*)$')
    renamed[stored[i]] = {id = new_id, job_id = job_id}
    if job_id ~= '' and not job_keys[job_id] then missing[#missing + 1] = job_id end
  end
  if #missing > 1 then return missing end

  drop_deleted(mark, renamed)
  local entries = redis.call('XLEN', stream_key)
  if redis.call('XLEN', copy_key) ~= entries then -- whatever it has, it is no copy
    redis.call('UNLINK', copy_key)
    return {'copying'}
  end
  others = 0
  for old_id, new in pairs(renamed) do
    others = others + 1
    if new.job_id ~= '' then rename(job_keys[new.job_id], old_id, new.id) end
  end
  local is_open = raise_last_id()
  redis.call('XGROUP', 'DESTROY', copy_key, mark)
  redis.call('UNLINK', stream_key)
  redis.call('RENAME', copy_key, stream_key)
  redis.call('PERSIST', stream_key)
  redis.call('UNLINK', renamed_key)
  if not is_open then return {'copying'} end
  return {'rebuilt', entries - others, others}
end

return rebuild()
