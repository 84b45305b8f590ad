#!lua flags=allow-oom
-- beat: a heartbeat of a node, dispatcher or reaper, stamped with the server's clock.
-- KEYS[1] {sched}:heartbeats        stream
-- KEYS[2] {sched}:dispatchers       zset
-- ARGV[1] document   ARGV[2] member of the dispatchers (name+boot), empty for nodes and reapers
-- ARGV[3] heartbeats_max   ARGV[4] silence_ms: how long a dispatcher counts as live   ARGV[5] stays | leaves (a dispatcher)
-- RETURNS {now_ms, {live dispatcher, ...}}; the list is empty for nodes and reapers; an error when a value can be none, or
--   the heartbeat cannot be written
-- INVARIANT one heartbeat more in the stream, and of dispatchers the caller's own membership; who was heard ahead of the
--   clock, because it went back, was heard now. A repeat is another beat.
local heartbeats_key, dispatchers_key = KEYS[1], KEYS[2]
local document, member = ARGV[1], ARGV[2]
local heartbeats_max, silence_ms, leaves = ARGV[3], tonumber(ARGV[4]), ARGV[5] == 'leaves'

local DOCUMENT_BYTES_MAX = 1048576

local HEARTBEATS_MIN = 1000 -- entries: nobody may cut the stream of all below it

-- INCLUDE values

local function fault_of_call()
  if not document or document == '' then
    return wrong('document', document, 'a heartbeat')
  elseif #document > DOCUMENT_BYTES_MAX then
    return wrong('size of the document', #document, DOCUMENT_BYTES_MAX .. ' bytes at most')
  elseif member ~= '' and (#member > 128 or not string.find(member, '^[!-z|~]+%+[!-z|~]+$')) then
    return wrong('member', member, 'the name of a dispatcher, +, and its boot; nothing for others')
  elseif not whole(heartbeats_max, HEARTBEATS_MIN, 1e15) then
    return wrong('heartbeats_max', heartbeats_max, 'a whole number from ' .. HEARTBEATS_MIN)
  elseif not whole(ARGV[4], 1, 1e15) then
    return wrong('silence_ms', ARGV[4], 'a whole number of milliseconds from 1')
  elseif ARGV[5] ~= 'stays' and ARGV[5] ~= 'leaves' then
    return wrong('ARGV[5]', ARGV[5], 'stays or leaves')
  end
  return fault_of_names({'heartbeats', 'dispatchers'})
end

local fault = fault_of_call()
if fault then return redis.error_reply('ERR beat: ' .. fault) end

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local now_text = string.format('%.0f', now_ms)
local HEARTBEATS_KEPT = 1000

-- INCLUDE streams

local function append()
  return redis.pcall('XADD', heartbeats_key, 'MAXLEN', '~', heartbeats_max, '*', 'node', document, 'time_ms', now_text)
end

-- A stream that is made anew has lost its group: the leader makes one, and reads again what is in it.
local added = append()
if type(added) == 'table' and make_anew(heartbeats_key, HEARTBEATS_KEPT, now_ms) then added = append() end
-- In the server's own words, by which callers know what it means: lack of a right is no fault of the heartbeat.
if type(added) == 'table' then return redis.error_reply(added.err) end
local live = {}
if member ~= '' then
  if leaves then
    redis.call('ZREM', dispatchers_key, member)
  else
    redis.call('ZADD', dispatchers_key, now_text, member)
  end
  for _, ahead in ipairs(redis.call('ZRANGEBYSCORE', dispatchers_key, '(' .. now_text, '+inf')) do
    redis.call('ZADD', dispatchers_key, 'XX', now_text, ahead)
  end
  redis.call('ZREMRANGEBYSCORE', dispatchers_key, '-inf', string.format('(%.0f', now_ms - silence_ms))
  live = redis.call('ZRANGE', dispatchers_key, 0, -1)
end
return {now_ms, live}
