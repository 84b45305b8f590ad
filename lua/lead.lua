#!lua flags=allow-oom
-- lead: take, keep or give up the leadership of the management group.
-- KEYS[1] {sched}:leader            hash: name, epoch, until_ms, lease_ms
-- ARGV[1] name (name+boot)   ARGV[2] lease_ms   ARGV[3] action: take | give_up   ARGV[4] floor: an epoch that the caller has
--   seen in a cell, 0 for none
-- RETURNS {"leading", epoch, now_ms} | {"following", leader, until_ms, now_ms} | {"given_up", now_ms}
-- INVARIANT at most one name leads, under an epoch above the floor; a change of name raises the epoch, claiming again as
--   the holder does not, unless a cell has seen a higher one; no lease lies further ahead than its own length, whatever
--   the clock did since it was written.
local leader_key = KEYS[1]
local name, lease_ms, action, floor = ARGV[1], tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4] or 0)

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local stored = redis.call('HMGET', leader_key, 'name', 'epoch', 'until_ms', 'lease_ms')
local leader, epoch, until_ms = stored[1] or '', tonumber(stored[2]) or 0, tonumber(stored[3]) or 0

if action == 'give_up' then
  if leader == name then redis.call('HSET', leader_key, 'name', '', 'until_ms', string.format('%.0f', now_ms)) end
  return {'given_up', now_ms}
end
if leader ~= name then
  local latest_ms = now_ms + (tonumber(stored[4]) or lease_ms)
  if until_ms > latest_ms then
    until_ms = latest_ms
    redis.call('HSET', leader_key, 'until_ms', string.format('%.0f', until_ms))
  end
  if leader ~= '' and until_ms > now_ms then return {'following', leader, until_ms, now_ms} end
  epoch = math.max(epoch + 1, now_us)
end
epoch = math.max(epoch, floor + 1)
local epoch_text = string.format('%.0f', epoch)
redis.call('HSET', leader_key, 'name', name, 'epoch', epoch_text, 'until_ms', string.format('%.0f', now_ms + lease_ms),
  'lease_ms', ARGV[2])
return {'leading', epoch_text, now_ms}
