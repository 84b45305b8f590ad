#!lua flags=allow-oom
-- take: acknowledge the last batch of heartbeats, read the next, and read commands. Polled: a script cannot block.
-- KEYS[1] {sched}:leader            hash
-- KEYS[2] {sched}:heartbeats        stream, group management
-- KEYS[3] {sched}:commands          stream, group management
-- ARGV[1] name   ARGV[2] epoch   ARGV[3] group   ARGV[4] consumer   ARGV[5] count   ARGV[6] from: new | pending
-- ARGV[7..] ids of heartbeats to acknowledge
-- RETURNS {"taken", now_ms, heartbeats, commands, more, made} | {"fenced", leader, epoch}
--   heartbeats: {id, node, time_ms, ...}, flat, for they are many; empty where an entry has no such field, or a huge one
--   commands: {{id, {field, value, ...}}, ...}, `command` cut to a byte more than one may have, all others empty
--   more: 1 if commands are left for another call, for these are large enough   made: groups that were not there
-- INVARIANT only the leader reads. Commands are acknowledged by publish, so an unanswered one is pending for the next
--   leader.
local leader_key, heartbeats_key, commands_key = KEYS[1], KEYS[2], KEYS[3]
local name, epoch, group, consumer, count, from = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local AT_ONCE = 1000 -- unpack fails with several thousand values
local COMMAND_BYTES_MAX, COMMANDS_BYTES_MAX, OTHERS_MAX = 2 ^ 20, 2 ^ 22, 64
local HEARTBEAT_BYTES_MAX = 2 ^ 18 -- no node says more; a manager that waited for it would not lead any more

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local leader = redis.call('HMGET', leader_key, 'name', 'epoch')
if leader[1] ~= name or leader[2] ~= epoch then return {'fenced', leader[1] or '', leader[2] or '0'} end

local made = 0

-- At most `most` entries, pending ones from after an id on.
local function read(key, after, most)
  local id = from == 'pending' and after or '>'
  local reply = redis.pcall('XREADGROUP', 'GROUP', group, consumer, 'COUNT', most, 'STREAMS', key, id)
  if reply and reply.err then
    if not string.find(reply.err, 'NOGROUP', 1, true) then error(reply) end
    redis.call('XGROUP', 'CREATE', key, group, '0', 'MKSTREAM')
    made = made + 1
    reply = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', most, 'STREAMS', key, id)
  end
  local entries, last_id = {}, nil
  for _, entry in ipairs(reply and reply[1][2] or {}) do
    last_id = entry[1]
    -- A pending entry whose body was trimmed can never be handled: acknowledge it.
    if entry[2] and #entry[2] > 0 then
      entries[#entries + 1] = entry
    else
      redis.call('XACK', key, group, entry[1])
    end
  end
  return entries, last_id
end

-- What matters of a command, and its bytes.
local function cut(entry)
  local fields, bytes = {}, 0
  for i = 1, math.min(#entry[2], 2 * OTHERS_MAX), 2 do
    local is_it = entry[2][i] == 'command'
    fields[i] = string.sub(entry[2][i], 1, 100)
    fields[i + 1] = is_it and string.sub(entry[2][i + 1], 1, COMMAND_BYTES_MAX + 1) or ''
    bytes = bytes + #fields[i] + #fields[i + 1]
  end
  return {entry[1], fields}, bytes
end

-- One after the other, as many as fit. The second value is whether something may be left.
local function read_commands()
  local commands, bytes, after = {}, 0, '0'
  for _ = 1, count do
    local entries, last_id = read(commands_key, after, 1)
    if not last_id then return commands, 0 end
    after = last_id
    if entries[1] then
      local size
      commands[#commands + 1], size = cut(entries[1])
      bytes = bytes + size
      if bytes >= COMMANDS_BYTES_MAX then break end
    end
  end
  return commands, 1
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
local heartbeats = read(heartbeats_key, '0', count)
local commands, more = read_commands()
return {'taken', now_ms, flat(heartbeats), commands, more, made}
