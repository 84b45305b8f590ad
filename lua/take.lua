#!lua flags=allow-oom
-- take: acknowledge the last batch of heartbeats, read the next, and read commands. Polled: a script cannot block.
-- KEYS[1] {sched}:leader            hash
-- KEYS[2] {sched}:heartbeats        stream, group management
-- KEYS[3] {sched}:commands          stream, group management
-- ARGV[1] name   ARGV[2] epoch   ARGV[3] group   ARGV[4] consumer   ARGV[5] count   ARGV[6] from: new | pending
-- ARGV[7..] ids of heartbeats to acknowledge
-- RETURNS {"taken", now_ms, heartbeats, commands}, both {{id, {field, value, ...}}, ...} | {"fenced", leader, epoch}
-- INVARIANT only the leader reads. Commands are acknowledged by publish, so an unanswered one is pending for the next leader.
local leader_key, heartbeats_key, commands_key = KEYS[1], KEYS[2], KEYS[3]
local name, epoch, group, consumer, count, from = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]

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

for i = 7, #ARGV do redis.call('XACK', heartbeats_key, group, ARGV[i]) end
return {'taken', now_ms, read(heartbeats_key), read(commands_key)}
