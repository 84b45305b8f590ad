#!lua flags=allow-oom
-- capacity: what the leader says of nodes: their slots, for which boot, and why. Tells the node in the same step.
-- KEYS[1] {cell}:capacity           hash: node -> "slots boot reason"
-- KEYS[2] {cell}:leader_epoch       string
-- KEYS[3] {cell}:open               set
-- KEYS[4] {cell}:freed              stream
-- KEYS[5] {cell}:control_ids        hash: node -> "boot_id other_id": of the control words in its inbox, - for none
-- KEYS[6..] a node each: {cell}:slots:<node> zset, {cell}:inbox:<node> stream, {cell}:left:<node> string
-- ARGV[1] leader epoch   ARGV[2] freed_max   ARGV[3..] items: node, slots, boot,
--   reason (ready | suspect | draining | quarantined | dead)
-- RETURNS {"accepted", answer, ...}, one a node: "written" | "unchanged" | "older" | "refused" | "left"
--         | {"fenced", epoch}
-- INVARIANT no epoch below the highest seen writes; a boot never falls back, nor comes back when it or a later one left, nor
--           gets slots once it asked to leave; the inbox tells the node in the step that
--           changes its capacity; a repeat changes nothing. A node that is refused has a capacity all the same, of no slots
--           and a boot below all others: reapers, who open its inbox, look at those that have one.
local capacity_key, epoch_key, open_key, freed_key, control_ids_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local epoch, freed_max = ARGV[1], ARGV[2]
local INBOX_KEPT = 128 -- of an inbox that takes no entry any more: a longer one is left to the reaper
local CONTROL_IDS_SPARE = 1000 -- of nodes that have left, beside as many as there are nodes
local REFUSED = '0 0-refused quarantined'

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)

-- INCLUDE streams
-- INCLUDE epochs

local higher = fenced_by(epoch_key, epoch)
if higher then return {'fenced', higher} end

local function serves(reason) return reason == 'ready' or reason == 'suspect' end
local function boot_order(boot) return tonumber(string.match(boot, '^(%d+)%-')) or 0 end

-- Whether a boot has left, or asked to: itself, or a later one of its node. One ahead of the clock says nothing of others,
-- for it may be one that nobody gave.
local function is_over(left_key, boot)
  local left = redis.call('GET', left_key)
  return left and (left == boot or (boot_order(left) <= now_us and boot_order(boot) <= boot_order(left)))
end

-- Delete a control word. Where the clock went back, its id may have been given again, in an inbox that was made since.
local function drop_control(inbox_key, id)
  local entry = redis.pcall('XRANGE', inbox_key, id, id)[1] -- none, too, if that is no id
  if entry and entry[2][1] == 'control' then redis.call('XDEL', inbox_key, id) end
end

-- The node reads the newest word only: what it replaces goes. `resumed` takes `drained` with it, a boot takes both and
-- the boot before it. The ids of these are stored, for an inbox may hold many large bodies.
local function inform(node, inbox_key, control, boot)
  local stored = redis.call('HGET', control_ids_key, node) or ''
  local boot_id, other_id = string.match(stored, '^(%S+) (%S+)$')
  local added = redis.pcall('XADD', inbox_key, '*', 'control', control, 'boot', boot)
  if type(added) == 'table' and make_anew(inbox_key, INBOX_KEPT, now_ms, true) then
    added = redis.pcall('XADD', inbox_key, '*', 'control', control, 'boot', boot)
  end
  if type(added) == 'table' and added.err then return false end
  if other_id and other_id ~= added then drop_control(inbox_key, other_id) end
  if control == 'boot' and boot_id and boot_id ~= added then drop_control(inbox_key, boot_id) end
  local ids = control == 'boot' and added .. ' -' or (boot_id or '-') .. ' ' .. added
  redis.call('HSET', control_ids_key, node, ids)
  return true
end

-- `leave` knows nothing of the ids, so those of nodes that have left go when they are many.
local function forget_left()
  local most = 2 * redis.call('HLEN', capacity_key) + CONTROL_IDS_SPARE
  if redis.call('HLEN', control_ids_key) <= most then return end
  for _, node in ipairs(redis.call('HKEYS', control_ids_key)) do
    if redis.call('HEXISTS', capacity_key, node) == 0 then redis.call('HDEL', control_ids_key, node) end
  end
end

local answers, opened, informed = {'accepted'}, {}, false
local key_index = 6
for i = 3, #ARGV, 4 do
  local node, slots, boot, reason = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2], ARGV[i + 3]
  local slots_key, inbox_key, left_key = KEYS[key_index], KEYS[key_index + 1], KEYS[key_index + 2]
  key_index = key_index + 3
  local current = redis.call('HGET', capacity_key, node)
  local _, current_boot, current_reason = string.match(current or '', '^(%S+) (%S+) (%S+)$')
  local over, holds = is_over(left_key, boot), redis.call('ZCARD', slots_key) > 0
  -- Who asked to leave and still holds something is drained, also before the leader hears of that.
  if over and serves(reason) then slots, reason = 0, 'draining' end
  local value = string.format('%.0f %s %s', slots, boot, reason)
  local answer = 'written'
  if current == value or (not current and reason == 'dead' and not holds) then
    answer = 'unchanged'
  elseif over and boot ~= current_boot and (current or not holds) then
    answer = 'left' -- its last heartbeats were read late, or not at all
  elseif current_boot and boot ~= current_boot and boot_order(boot) <= boot_order(current_boot) then
    answer = 'older'
  else
    local told = true
    if boot ~= current_boot then told = inform(node, inbox_key, 'boot', boot) end
    if told and reason == 'draining' and (boot ~= current_boot or current_reason ~= 'draining') then
      told = inform(node, inbox_key, 'drained', boot)
    elseif told and serves(reason) and boot == current_boot and not serves(current_reason) then
      -- Also after another reason: a `drained` from before it may still stand.
      told = inform(node, inbox_key, 'resumed', boot)
    end
    if told then
      redis.call('HSET', capacity_key, node, value)
      informed = true
      if redis.call('ZCARD', slots_key) < slots then
        -- More room than before can unblock a waiter even when the node was open already.
        redis.call('SADD', open_key, node)
        opened[#opened + 1] = node
      else
        redis.call('SREM', open_key, node)
      end
    else
      answer = 'refused'
      if not current then redis.call('HSET', capacity_key, node, REFUSED) end
    end
  end
  answers[#answers + 1] = answer
end
if informed then forget_left() end
if #opened > 0 then
  tell(freed_key, 0, now_ms, 'MAXLEN', '~', freed_max, '*', 'nodes', table.concat(opened, ' '))
end
return answers
