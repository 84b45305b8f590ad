#!lua flags=allow-oom
-- leave: the end of a node: called by the node itself, or by a reaper for a dead one.
-- KEYS[1] {cell}:capacity           hash: node -> "slots boot reason"
-- KEYS[2] {cell}:open               set
-- KEYS[3] {cell}:slots:<node>       zset
-- KEYS[4] {cell}:inbox:<node>       stream
-- KEYS[5] {cell}:left:<node>        string: the boot that left last, or asked to
-- ARGV[1] node   ARGV[2] boot   ARGV[3] leaves (a node that asked for it) | drained (a node that others drained) | dead (a reaper)
-- RETURNS {"left"} | {"busy", slots, used}: it holds some, or may still get work | {"replaced", boot}: a later boot is there
-- INVARIANT a node leaves only without reservations, so that nothing is stranded, and then gets none; a boot that left by
--           itself, and those before it, are never written again. Who asked to leave gets nothing new meanwhile, whatever
--           the leader has heard. A repeat answers "left".
local capacity_key, open_key, slots_key, inbox_key, left_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local node, boot, why = ARGV[1], ARGV[2], ARGV[3]
local LEFT_MS = 3600000 -- no heartbeat is read as late as that
local BOOT_BYTES_MAX = 64
local AT_ONCE, HIGHEST_ID = 16, '18446744073709551615-18446744073709551615' -- after the highest id there is nothing

-- INCLUDE assignments

-- INCLUDE values

local function fault_of_call()
  if why ~= 'leaves' and why ~= 'drained' and why ~= 'dead' then
    return wrong('ARGV[3]', why, 'leaves, drained or dead')
  elseif not string.find(boot, '^%d+%-.') or #boot > BOOT_BYTES_MAX then
    return wrong('boot', boot, '<number>-<something random>')
  end
  return fault_of_names({'capacity', 'open', 'slots:' .. node, 'inbox:' .. node, 'left:' .. node})
end

local fault = fault_of_call()
if fault then return redis.error_reply('ERR leave: ' .. fault) end

-- Heartbeats of it that nobody has read yet, or a leader that has not heard of it, must not bring it back, nor give it slots.
local function remember()
  if why ~= 'dead' then redis.call('SET', left_key, boot, 'PX', LEFT_MS) end
end

-- Without the slots of a node, which somebody may have deleted, its inbox says whether it holds a job.
local function has_assignment()
  local start = '-'
  while start do
    local entries = redis.call('XRANGE', inbox_key, start, '+', 'COUNT', AT_ONCE)
    for _, entry in ipairs(entries) do
      if assignment_of(entry) then return true end
    end
    local last = entries[AT_ONCE]
    start = last and last[1] ~= HIGHEST_ID and '(' .. last[1]
  end
  return false
end

local function boot_order(other) return tonumber(string.match(other or '', '^(%d+)%-')) or 0 end

local current, used = redis.call('HGET', capacity_key, node), redis.call('ZCARD', slots_key)
if not current then -- somebody may have deleted it
  if used == 0 or why == 'leaves' then remember() end
  return used > 0 and {'busy', '0', used} or {'left'}
end
local slots, current_boot, reason = string.match(current, '^(%S+) (%S+) (%S+)$')
if current_boot ~= boot then
  if why == 'dead' or boot_order(current_boot) >= boot_order(boot) then return {'replaced', current_boot} end
  remember() -- no leader has taken it in: what is there is an earlier life's
  return {'left'}
end
local is_held = used > 0
if not is_held then is_held = has_assignment() end
if is_held and why == 'leaves' then
  slots = '0'
  remember()
  redis.call('HSET', capacity_key, node, slots .. ' ' .. boot .. ' draining')
  redis.call('SREM', open_key, node)
end
if is_held or (why ~= 'leaves' and tonumber(slots) > 0) or (why == 'dead' and reason ~= 'dead') then
  return {'busy', slots, used}
end

redis.call('HDEL', capacity_key, node)
redis.call('SREM', open_key, node)
redis.call('DEL', slots_key, inbox_key)
remember()
return {'left'}
