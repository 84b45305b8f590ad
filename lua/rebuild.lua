#!lua flags=allow-oom
-- rebuild: a stream whose ids are absurd takes no more entries until a copy of it takes its place; a part of that a call.
-- KEYS[1] {cell}:owners hash
-- KEYS[2] stream: {cell}:jobs:<p>, {cell}:inbox:<node>, {cell}:parked or {cell}:dead
-- KEYS[3] {cell}:rebuilt:<stream>   stream, its copy
-- KEYS[4..] {cell}:job:<job_id>     hash, one for each job_id
-- ARGV[1] partition, empty: of none   ARGV[2] epoch of its owner   ARGV[3] field: of a record, names an entry of the stream
-- ARGV[4] bytes_max, copied by a call   ARGV[5..] job_id, of entries whose id will be another one
-- RETURNS {"open"}: nothing to do | {"copying"}: again | {"records", job_id, ...}: again, with the records of these too
--         | {"rebuilt", entries, renamed} | {"fenced"}
-- INVARIANT the copy takes the place of the stream in the step that sees that it has all of it: entries under their ids,
--   in their order, then those whose ids were absurd, under new ids, which records name from then on. Anybody goes on
--   where somebody stopped, also two at once.
local owners_key, stream_key, copy_key = KEYS[1], KEYS[2], KEYS[3]
local partition, epoch, field, bytes_max = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local CLOSED, COPY_TTL_MS = '18446744073709551615-18446744073709551615', 60000
local AT_ONCE, ENTRY_BYTES = 16, 100 -- entries of a read; what an entry costs beside its values

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- INCLUDE streams

local function add(id, fields)
  -- Of an entry with more values than a call can have, which no script wrote, the first ones are kept.
  return redis.call('XADD', copy_key, id, unpack(fields, 1, math.min(#fields, 4000)))
end

-- Copy what is not absurd, from where the copy ends. Returns whether that was the rest.
local function copy_some()
  local good = string.format('%.0f', now_ms + AHEAD_MS_MAX)
  local copied_id, bytes = last_id_of(copy_key) or '0-0', 0
  while bytes < bytes_max do
    local entries = redis.call('XRANGE', stream_key, '(' .. copied_id, good, 'COUNT', AT_ONCE)
    if #entries == 0 then return true end
    for _, entry in ipairs(entries) do
      copied_id, bytes = add(entry[1], entry[2]), bytes + ENTRY_BYTES
      for i = 1, #entry[2] do
        bytes = bytes + #entry[2][i]
      end
    end
  end
  return false
end

-- Drop from the copy what was deleted from the stream meanwhile: mostly the oldest, so that is tried first.
local function drop_deleted(entries)
  local first = redis.call('XRANGE', stream_key, '-', '+', 'COUNT', 1)[1]
  if first then redis.call('XTRIM', copy_key, 'MINID', first[1]) end
  local more, start = redis.call('XLEN', copy_key) - entries, '-'
  while more > 0 do
    local copied = redis.call('XRANGE', copy_key, start, '+', 'COUNT', AT_ONCE)
    if #copied == 0 then return end
    for _, entry in ipairs(copied) do
      start = '(' .. entry[1]
      if #redis.call('XRANGE', stream_key, entry[1], entry[1]) == 0 then
        more = more - redis.call('XDEL', copy_key, entry[1])
      end
    end
  end
end

-- The record that names an entry names its new id.
local function rename(job_key, old_id, new_id)
  local named = redis.pcall('HGET', job_key, field)
  if type(named) ~= 'string' then return end
  local renamed = string.gsub(named, '%d+%-%d+', {[old_id] = new_id})
  if renamed ~= named then redis.call('HSET', job_key, field, renamed) end
end

local function rebuild()
  if partition ~= '' then
    local held = redis.call('HGET', owners_key, partition)
    if not held or string.match(held, '^%S+') ~= epoch then return {'fenced'} end
  end
  local last_id = last_id_of(stream_key)
  if not last_id or not is_absurd(last_id, now_ms) then
    redis.call('DEL', copy_key)
    return {'open'}
  end
  -- From here on nothing is added, so what was copied stays right.
  if last_id ~= CLOSED then redis.call('XSETID', stream_key, CLOSED) end
  local is_copied = copy_some()
  redis.call('PEXPIRE', copy_key, COPY_TTL_MS)
  if not is_copied then return {'copying'} end

  local absurd = redis.call('XRANGE', stream_key, string.format('%.0f', now_ms + AHEAD_MS_MAX + 1), '+')
  local job_keys, missing = {}, {'records'}
  for i = 5, #ARGV do
    job_keys[ARGV[i]] = KEYS[i - 1]
  end
  for _, entry in ipairs(absurd) do
    local job_id = value_of(entry[2], 'job_id')
    if job_id and not job_keys[job_id] then missing[#missing + 1] = job_id end
  end
  if #missing > 1 then return missing end

  local entries = redis.call('XLEN', stream_key) - #absurd
  drop_deleted(entries)
  if redis.call('XLEN', copy_key) ~= entries then -- whatever it has, it is no copy
    redis.call('DEL', copy_key)
    return {'copying'}
  end
  for _, entry in ipairs(absurd) do
    local new_id, job_id = add('*', entry[2]), value_of(entry[2], 'job_id')
    if job_id then rename(job_keys[job_id], entry[1], new_id) end
  end
  if entries + #absurd == 0 then -- an empty stream is one all the same
    redis.call('XDEL', copy_key, redis.call('XADD', copy_key, '*', 'rebuilt', '1'))
  end
  redis.call('UNLINK', stream_key)
  redis.call('RENAME', copy_key, stream_key)
  redis.call('PERSIST', stream_key)
  return {'rebuilt', entries, #absurd}
end

return rebuild()
