#!lua flags=allow-oom
-- take: acknowledge the last batch of heartbeats, read the next, and read commands. Polled: a script cannot block.
-- KEYS[1] {sched}:leader            hash
-- KEYS[2] {sched}:heartbeats        stream, group management
-- KEYS[3] {sched}:commands          stream, group management
-- ARGV[1] name   ARGV[2] epoch   ARGV[3] group   ARGV[4] consumer   ARGV[5] count   ARGV[6] from: new | pending
-- ARGV[7..] ids of heartbeats to acknowledge
-- RETURNS {"taken", now_ms, heartbeats, commands} | {"fenced", leader, epoch}
--   heartbeats: {id, node, time_ms, ...}, flat, for they are many; empty where an entry has no such field, or a huge one
--   commands: {{id, {field, value, ...}}, ...}
-- INVARIANT only the leader reads. Commands are acknowledged by publish, so an unanswered one is pending for the next
--   leader.
local leader_key, heartbeats_key, commands_key = KEYS[1], KEYS[2], KEYS[3]
local name, epoch, group, consumer, count, from = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local AT_ONCE = 1000 -- unpack fails with several thousand values
local HEARTBEAT_BYTES_MAX = 2 ^ 18 -- no node says more; a manager that waited for it would not lead any more

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local leader = redis.call('HMGET', leader_key, 'name', 'epoch')
if leader[1] ~= name or leader[2] ~= epoch then return {'fenced', leader[1] or '', leader[2] or '0'} end

local function read(key)
  local id = from == 'pending' and '0' or '>'
  local reply = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count, 'STREAMS', key, id)
  if reply and reply.err then
    if not string.find(reply.err, 'NOGROUP', 1, true) then error(reply) end
    redis.call('XGROUP', 'CREATE', key, group, '0', 'MKSTREAM')
    reply = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', count, 'STREAMS', key, id)
  end
  local entries = {}
  for _, entry in ipairs(reply and reply[1][2] or {}) do
    -- A pending entry whose body was trimmed can never be handled: acknowledge it.
    if entry[2] and #entry[2] > 0 then
      entries[#entries + 1] = entry
    else
      redis.call('XACK', key, group, entry[1])
    end
  end
  return entries
end

local function flat(entries)
  local values = {}
  for i, entry in ipairs(entries) do
    local fields, node, time_ms = entry[2], '', ''
    for j = 1, #fields, 2 do
      if fields[j] == 'node' then node = fields[j + 1] elseif fields[j] == 'time_ms' then time_ms = fields[j + 1] end
    end
    if #node > HEARTBEAT_BYTES_MAX then node = '' end
    values[3 * i - 2], values[3 * i - 1], values[3 * i] = entry[1], node, string.sub(time_ms, 1, 20)
  end
  return values
end

for first = 7, #ARGV, AT_ONCE do
  redis.call('XACK', heartbeats_key, group, unpack(ARGV, first, math.min(first + AT_ONCE - 1, #ARGV)))
end
return {'taken', now_ms, flat(read(heartbeats_key)), read(commands_key)}
