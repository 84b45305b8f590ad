#!lua flags=allow-oom
-- publish: the leader's one write of configuration, snapshot, version and answers to commands.
-- KEYS[1] {sched}:leader            hash
-- KEYS[2] {sched}:commands          stream, group management
-- KEYS[3] {sched}:config            hash
-- KEYS[4] {sched}:snapshot          string
-- KEYS[5] {sched}:version           string
-- KEYS[6] {sched}:deltas            stream
-- KEYS[7] {sched}:answers           stream
-- ARGV[1] name   ARGV[2] epoch   ARGV[3] group   ARGV[4] version, 0: no new one
-- ARGV[5] before: the version that delta changes, 0: whatever is stored   ARGV[6] delta, empty: everybody reads the whole
-- ARGV[7] snapshot, empty: the stored one stays   ARGV[8] oldest: with a snapshot, deltas of versions below it go
-- ARGV[9] answers_max   ARGV[10] sets   ARGV[11] deletes   ARGV[12] answers
-- ARGV[13..] sets x (field, value), deletes x (field), answers x (command id, answer)
-- RETURNS {"published", now_ms, untold: commands that are not answered, because the answers take no entry} | {"fenced", leader, epoch} | {"stale", version}
--   | {"lost", version}: it is not `before`, or something is missing: only a whole snapshot, before 0, leads on
-- INVARIANT only the leader writes; the stored version never falls; a repeat with the stored version changes nothing;
--   the stored snapshot and all deltas after it make the stored version; a command is gone from its stream if, and only
--   if, its answer is written: one that is not answered is taken and decided again.
local leader_key, commands_key, config_key, snapshot_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local version_key, deltas_key, answers_key = KEYS[5], KEYS[6], KEYS[7]
local name, epoch, group, version, before = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local delta, snapshot, oldest, answers_max = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local sets, deletes, answers = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local ANSWERS_KEPT = 1000 -- as many commands as one call answers

-- INCLUDE streams

local leader = redis.call('HMGET', leader_key, 'name', 'epoch')
if leader[1] ~= name or leader[2] ~= epoch then return {'fenced', leader[1] or '', leader[2] or '0'} end
local stored_version = redis.call('GET', version_key) or '0'

-- Whether a command still waits for its answer. Whoever took it back meanwhile has deleted it, but it was decided and is
-- pending; what a group that was deleted had read is there, and pending no more.
local function waits(command_id)
  if #redis.pcall('XPENDING', commands_key, group, command_id, command_id, 1) > 0 then return true end
  return #redis.call('XRANGE', commands_key, command_id, command_id) > 0
end

local waiting = {}
for i = 13 + 2 * sets + deletes, #ARGV, 2 do
  waiting[i] = waits(ARGV[i])
end

local function append()
  local fields = {'version', version, 'before', before}
  if delta ~= '' then fields[5], fields[6] = 'delta', delta end
  -- The version is the id, so that whoever has a version reads on from there.
  return redis.pcall('XADD', deltas_key, version .. '-0', unpack(fields))
end

if version ~= '0' and stored_version ~= version then
  if (tonumber(stored_version) or 0) > tonumber(version) then return {'stale', stored_version} end
  if before ~= '0' and before ~= stored_version then return {'lost', stored_version} end
  if snapshot == '' then
    local newest = redis.call('XREVRANGE', deltas_key, '+', '-', 'COUNT', 1)[1]
    local has_snapshot = redis.call('EXISTS', snapshot_key) == 1
    if not has_snapshot or not newest or newest[1] ~= stored_version .. '-0' then return {'lost', stored_version} end
  end
  if type(append()) == 'table' then
    -- A stream that takes no entry any more starts anew, with the whole snapshot beside it.
    if snapshot == '' then return {'lost', stored_version} end
    redis.call('DEL', deltas_key)
    append()
  end
  if snapshot ~= '' then
    redis.call('SET', snapshot_key, snapshot)
    redis.call('XTRIM', deltas_key, 'MINID', oldest)
  end
  redis.call('SET', version_key, version)
end

local position = 13
for _ = 1, sets do
  redis.call('HSET', config_key, ARGV[position], ARGV[position + 1])
  position = position + 2
end
for _ = 1, deletes do
  redis.call('HDEL', config_key, ARGV[position])
  position = position + 1
end
local untold = 0
for _ = 1, answers do
  if waiting[position] then
    local command_id = ARGV[position]
    if tell(answers_key, ANSWERS_KEPT, now_ms, 'MAXLEN', '~', answers_max, '*', 'command', command_id,
      'answer', ARGV[position + 1]) then
      -- It goes with its answer: a group that was deleted begins with what is left, and nothing is decided twice.
      redis.pcall('XACK', commands_key, group, command_id)
      redis.call('XDEL', commands_key, command_id)
    else
      untold = untold + 1
    end
  end
  position = position + 2
end
return {'published', now_ms, untold}
