#!lua flags=allow-oom
-- publish: the leader's one write of configuration, snapshot, version and answers to commands.
-- KEYS[1] {sched}:leader            hash
-- KEYS[2] {sched}:commands          stream, group management
-- KEYS[3] {sched}:config            hash
-- KEYS[4] {sched}:snapshot          string
-- KEYS[5] {sched}:version           string
-- KEYS[6] {sched}:deltas            stream
-- KEYS[7] {sched}:answers           stream
-- ARGV[1] name   ARGV[2] epoch   ARGV[3] group   ARGV[4] version   ARGV[5] snapshot, empty to leave it
-- ARGV[6] deltas_max   ARGV[7] answers_max   ARGV[8] sets   ARGV[9] deletes   ARGV[10] answers
-- ARGV[11..] sets x (field, value), deletes x (field), answers x (command id, answer)
-- RETURNS {"published", now_ms} | {"fenced", leader, epoch} | {"stale", version}
-- INVARIANT only the leader writes; the stored version never falls; a repeat with the stored version changes nothing.
local leader_key, commands_key, config_key, snapshot_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local version_key, deltas_key, answers_key = KEYS[5], KEYS[6], KEYS[7]
local name, epoch, group, version, snapshot = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local deltas_max, answers_max = ARGV[6], ARGV[7]
local sets, deletes, answers = tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10])

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local leader = redis.call('HMGET', leader_key, 'name', 'epoch')
if leader[1] ~= name or leader[2] ~= epoch then return {'fenced', leader[1] or '', leader[2] or '0'} end
local stored_version = redis.call('GET', version_key) or '0'
local repeated = snapshot ~= '' and stored_version == version
if snapshot ~= '' and tonumber(stored_version) > tonumber(version) then return {'stale', stored_version} end

local position = 11
for _ = 1, sets do
  redis.call('HSET', config_key, ARGV[position], ARGV[position + 1])
  position = position + 2
end
for _ = 1, deletes do
  redis.call('HDEL', config_key, ARGV[position])
  position = position + 1
end
if snapshot ~= '' and not repeated then
  redis.call('SET', snapshot_key, snapshot)
  redis.call('SET', version_key, version)
  local delta = redis.pcall('XADD', deltas_key, 'MAXLEN', '~', deltas_max, '*', 'version', version)
  -- A stream that takes no entry any more starts anew: it only says that there is something to read.
  if type(delta) == 'table' then
    redis.call('DEL', deltas_key)
    redis.pcall('XADD', deltas_key, '*', 'version', version)
  end
end
for _ = 1, answers do
  -- An acknowledged command has its answer already.
  if redis.call('XACK', commands_key, group, ARGV[position]) == 1 then
    redis.pcall('XADD', answers_key, 'MAXLEN', '~', answers_max, '*', 'command', ARGV[position], 'answer', ARGV[position + 1])
  end
  position = position + 2
end
return {'published', now_ms}
