#!lua flags=allow-oom
-- leave: the end of a node: called by the node itself once it is drained, or by a reaper for a dead one.
-- KEYS[1] {cell}:capacity           hash: node -> "slots boot reason"
-- KEYS[2] {cell}:open               set
-- KEYS[3] {cell}:slots:<node>       zset
-- KEYS[4] {cell}:inbox:<node>       stream
-- ARGV[1] node   ARGV[2] boot
-- RETURNS {"left"} | {"busy", slots, used}: it may still get work or holds some | {"replaced", boot}: a newer boot is there
-- INVARIANT a node leaves only without slots and reservations, so that nothing is stranded. A repeat answers "left".
local capacity_key, open_key, slots_key, inbox_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local node, boot = ARGV[1], ARGV[2]

local current = redis.call('HGET', capacity_key, node)
if not current then return {'left'} end
local slots, current_boot = string.match(current, '^(%S+) (%S+) %S+$')
if current_boot ~= boot then return {'replaced', current_boot} end
local used = redis.call('ZCARD', slots_key)
if tonumber(slots) > 0 or used > 0 then return {'busy', slots, used} end
-- What is left has no job, unless the slots were deleted.
for _, entry in ipairs(redis.call('XRANGE', inbox_key, '-', '+', 'COUNT', 10)) do
  if entry[2][1] == 'job' then return {'busy', slots, used} end
end

redis.call('HDEL', capacity_key, node)
redis.call('SREM', open_key, node)
redis.call('DEL', slots_key, inbox_key)
return {'left'}
