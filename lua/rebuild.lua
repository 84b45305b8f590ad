#!lua flags=allow-oom
-- rebuild: a stream whose ids are absurd takes no more entries until a copy of it takes its place; a part of that a call.
-- KEYS[1] {cell}:owners hash
-- KEYS[2] stream: {cell}:jobs:<p>, {cell}:inbox:<node>, {cell}:parked or {cell}:dead
-- KEYS[3] {cell}:rebuilt:<stream>   stream, its copy
-- KEYS[4] {cell}:renamed:<stream>   hash, of absurd ids: those in the copy, and job ids
-- KEYS[5..] {cell}:job:<job_id>     hash, one for each job_id
-- ARGV[1] partition, empty: of none   ARGV[2] epoch of its owner   ARGV[3] field: of a record, names an entry of the stream
-- ARGV[4] bytes_max, copied by a call, or one entry   ARGV[5] above: ms below which ids were given before, 0: not known
-- ARGV[6..] job_id, of entries whose id will be another one
-- RETURNS {"open"}: nothing to do | {"copying"}: again | {"records", job_id, ...}: again, with the records of these too
--         | {"rebuilt", entries, renamed} | {"fenced"}
-- INVARIANT the copy takes the place of the stream in the step that sees that it has all of it: entries under their ids,
--   in their order, then those whose ids were absurd, under new ids, which records name from then on. Anybody goes on
--   where somebody stopped, also two at once. No id is given that the stream gave before.
local owners_key, stream_key, copy_key, renamed_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local partition, epoch, field, bytes_max, above_ms = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local JOBS, JOB_KEYS = 5, 4 -- what stands before the jobs
local CLOSED, COPY_TTL_MS = '18446744073709551615-18446744073709551615', 60000
local ENTRY_BYTES, LARGE_BYTES, VALUES_MAX = 100, 2 ^ 20, 7000 -- what an entry costs beside its values; of one call of XADD
local IDS_AT_ONCE, CONSUMER = 1000, 'rebuild'

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- INCLUDE streams

-- A group of the same name, on stream and copy, says that the one is the copy of the other: it goes with its stream, so
-- none is taken for a copy of what came in its place. What the group has pending is what was copied.
local function mark_of(key)
  local groups = redis.pcall('XINFO', 'GROUPS', key)
  for _, group in ipairs(groups.err and {} or groups) do
    local name = value_of(group, 'name')
    if string.find(name, '^rebuild ') then return name end
  end
end

-- Nothing is added from then on, so what was copied stays right.
local function begin(last_id, old_mark)
  local mark = 'rebuild ' .. time[1] .. ' ' .. time[2]
  if last_id ~= CLOSED then redis.call('XSETID', stream_key, CLOSED) end
  if old_mark then redis.call('XGROUP', 'DESTROY', stream_key, old_mark) end
  redis.call('DEL', copy_key, renamed_key)
  redis.call('XGROUP', 'CREATE', stream_key, mark, '0')
  redis.call('XGROUP', 'CREATE', copy_key, mark, '0', 'MKSTREAM')
  return mark
end

local function copy(entry)
  local id, fields, bytes = entry[1], entry[2], ENTRY_BYTES
  -- Of an entry with more values than a call can have, which no script wrote, the first ones are kept.
  local new_id = redis.call('XADD', copy_key, is_absurd(id, now_ms) and '*' or id,
    unpack(fields, 1, math.min(#fields, VALUES_MAX)))
  if new_id ~= id then redis.call('HSET', renamed_key, id, new_id .. ' ' .. (value_of(fields, 'job_id') or '')) end
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

-- Drop from the copy what was deleted from the stream meanwhile. No body is looked at.
local function drop_deleted(mark)
  local cursor = '0-0'
  repeat
    local found = redis.call('XAUTOCLAIM', stream_key, mark, CONSUMER, 0, cursor, 'COUNT', IDS_AT_ONCE, 'JUSTID')
    cursor = found[1]
    for _, id in ipairs(found[3]) do
      local renamed = redis.call('HGET', renamed_key, id)
      redis.call('XDEL', copy_key, renamed and string.match(renamed, '^%S+') or id)
      redis.call('HDEL', renamed_key, id)
    end
  until cursor == '0-0'
end

-- The record that names an entry names its new id.
local function rename(job_key, old_id, new_id)
  local named = redis.pcall('HGET', job_key, field)
  if type(named) ~= 'string' then return end
  local renamed = string.gsub(named, '%d+%-%d+', {[old_id] = new_id})
  if renamed ~= named then redis.call('HSET', job_key, field, renamed) end
end

-- What the stream gave before is not given again, for an id names a job that has none: of that the copy has only what is
-- left. Of what was deleted the server knows the highest id. Where that is absurd, and the owner knows nothing either, the
-- clock may have gone back by nearly as much as any is wrong.
local function raise_last_id()
  local info = redis.call('XINFO', 'STREAM', stream_key)
  local deleted_id, most_ms = value_of(info, 'max-deleted-entry-id') or '0-0', now_ms + AHEAD_MS_MAX - 3600000
  local given_ms = above_ms
  if not is_absurd(deleted_id, now_ms) then
    given_ms = math.max(given_ms, tonumber(string.match(deleted_id, '^%d+')))
  elseif partition ~= '' and above_ms == 0 then
    given_ms = most_ms
  end
  local copied_ms = tonumber(string.match(last_id_of(copy_key), '^%d+'))
  redis.call('XSETID', copy_key, string.format('%.0f-0', math.max(copied_ms, math.min(given_ms, most_ms)) + 1))
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
      redis.call('DEL', copy_key, renamed_key)
      return {'open'}
    end
    mark = begin(last_id, mark)
  end
  local is_copied = copy_some(mark)
  redis.call('PEXPIRE', copy_key, COPY_TTL_MS)
  redis.call('PEXPIRE', renamed_key, COPY_TTL_MS)
  if not is_copied then return {'copying'} end

  local renamed = redis.call('HGETALL', renamed_key)
  local job_keys, missing = {}, {'records'}
  for i = JOBS + 1, #ARGV do
    job_keys[ARGV[i]] = KEYS[JOB_KEYS + i - JOBS]
  end
  for i = 2, #renamed, 2 do
    local job_id = string.match(renamed[i], ' (.*)$')
    if job_id ~= '' and not job_keys[job_id] then missing[#missing + 1] = job_id end
  end
  if #missing > 1 then return missing end

  drop_deleted(mark)
  if redis.call('XLEN', copy_key) ~= redis.call('XLEN', stream_key) then -- whatever it has, it is no copy
    redis.call('DEL', copy_key)
    return {'copying'}
  end
  renamed = redis.call('HGETALL', renamed_key)
  for i = 1, #renamed, 2 do
    local new_id, job_id = string.match(renamed[i + 1], '^(%S+) (.*)$')
    if job_id ~= '' then rename(job_keys[job_id], renamed[i], new_id) end
  end
  raise_last_id()
  redis.call('XGROUP', 'DESTROY', copy_key, mark)
  redis.call('UNLINK', stream_key)
  redis.call('RENAME', copy_key, stream_key)
  redis.call('PERSIST', stream_key)
  redis.call('DEL', renamed_key)
  return {'rebuilt', redis.call('XLEN', stream_key) - #renamed / 2, #renamed / 2}
end

return rebuild()
