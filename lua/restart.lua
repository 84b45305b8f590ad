#!lua flags=allow-oom
-- restart: a stream of the leader whose ids are absurd begins anew, when all of it has been read and dealt with.
-- KEYS[1] {sched}:leader            hash
-- KEYS[2] stream, with a group: {sched}:heartbeats or {sched}:commands
-- ARGV[1] name   ARGV[2] epoch   ARGV[3] group
-- RETURNS {"open"}: nothing to do | {"busy"}: something of it is not read or not answered, again | {"restarted"}
--         | {"fenced", leader, epoch}
-- INVARIANT only the leader restarts; what is pending or unread is never dropped, and it keeps its id, by which it is
--   answered; what is kept is not read again.
local leader_key, stream_key = KEYS[1], KEYS[2]
local name, epoch, group = ARGV[1], ARGV[2], ARGV[3]
local CLOSED, KEPT_MAX = '18446744073709551615-18446744073709551615', 1000

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- INCLUDE streams

local leader = redis.call('HMGET', leader_key, 'name', 'epoch')
if leader[1] ~= name or leader[2] ~= epoch then return {'fenced', leader[1] or '', leader[2] or '0'} end
local last_id = last_id_of(stream_key)
if not last_id or not is_absurd(last_id, now_ms) then return {'open'} end
if last_id ~= CLOSED then redis.call('XSETID', stream_key, CLOSED) end
for _, info in ipairs(redis.call('XINFO', 'GROUPS', stream_key)) do
  if value_of(info, 'name') == group then
    local delivered_id = value_of(info, 'last-delivered-id')
    local is_read = value_of(info, 'pending') == 0
    for _, entry in ipairs(redis.call('XRANGE', stream_key, delivered_id, '+', 'COUNT', 2)) do
      is_read = is_read and entry[1] == delivered_id
    end
    if is_read then
      make_anew(stream_key, KEPT_MAX, now_ms)
      redis.call('XGROUP', 'CREATE', stream_key, group, '$', 'MKSTREAM')
      return {'restarted'}
    end
  end
end
return {'busy'}
