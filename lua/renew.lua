#!lua flags=allow-oom
-- renew: a node's leases go on; the first renewal of a reservation marks that its job was started.
-- KEYS[1] {cell}:slots:<node>       zset: job_id -> lease deadline (ms)
-- KEYS[2..] {cell}:job:<job_id>     hash, one a job; the last one is {cell}:capacity, a hash: node -> "slots boot reason"
-- ARGV items: job_id, token
-- RETURNS {now_ms, answer, ...}, one a job: {"renewed", lease_until_ms} | {"cancelling", lease_until_ms}
--         | {"stale", token} | {"unknown"} | {"overrun", started_ms} | {"crowded", slots}
-- INVARIANT only the live reservation with this token is prolonged. A lapsed lease that nobody took may still be renewed. So
--           may one whose slot was lost with its key, once the node has room for it.
local slots_key, capacity_key = KEYS[1], KEYS[#KEYS]

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local answers = {now_ms}

-- Whether a reservation without a slot gets one back; and how many there are. Others may have come into its place.
local function has_room(node)
  local slots = tonumber(string.match(redis.call('HGET', capacity_key, node) or '', '^%S+')) or 0
  return redis.call('ZCARD', slots_key) < slots, slots
end

local function renew(job_key, job_id, token)
  local record = redis.call('HMGET', job_key, 'state', 'holder', 'policy', 'started_ms', 'cancel')
  if not record[1] then return {'unknown'} end
  local node, last = string.match(record[2] or '', '^(%S+) (%S+)$')
  if record[1] ~= 'reserved' or last ~= token then return {'stale', last or '0'} end
  local is_lost = not redis.call('ZSCORE', slots_key, job_id)
  if is_lost and string.match(slots_key, '}:slots:(.*)$') ~= node then return {'stale', last} end
  local lease_ms, run_ms_max = string.match(record[3] or '', '^%S+ (%d+) %d+ %d+ (%d+)')
  if not lease_ms then return {'unknown'} end
  local started_ms = tonumber(record[4])
  if started_ms and now_ms > started_ms + run_ms_max then return {'overrun', record[4]} end

  if is_lost then
    local fits, slots = has_room(node)
    if not fits then return {'crowded', slots} end
  end
  local lease_until_ms = string.format('%.0f', now_ms + lease_ms)
  redis.call('ZADD', slots_key, lease_until_ms, job_id)
  if not started_ms then redis.call('HSET', job_key, 'started_ms', string.format('%.0f', now_ms)) end
  return {record[5] and 'cancelling' or 'renewed', lease_until_ms}
end

for i = 1, #ARGV, 2 do
  answers[#answers + 1] = renew(KEYS[(i + 3) / 2], ARGV[i], ARGV[i + 1])
end
return answers
