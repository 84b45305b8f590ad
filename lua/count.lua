#!lua flags=allow-oom
-- count: what the leader says is counted for limits, and reservations that were made before, which count from now on.
-- KEYS[1] {cell}:leader_epoch       string
-- KEYS[2] {cell}:counted            string: "version kind kind"; nothing is counted without it
-- KEYS[3..N+2] {cell}:slots:<node>  zset, one a node (N)
-- then a job each: {cell}:job:<job_id> hash, {cell}:held:session:<id> zset, {cell}:held:tenant:<id> zset: job_id -> max
-- ARGV[1] leader epoch   ARGV[2] counted, as it is stored; empty: nothing   ARGV[3] N   then N x node
-- then a job each: node index, job_id, session, tenant, session_max, tenant_max (the limits of its pool, 0: none)
-- RETURNS {"accepted", "changed" | "unchanged" (what is stored), answer, ...}, one a job: "added" | "counted" | "stale"
--   | {"fenced", epoch}
-- INVARIANT no epoch below the highest seen writes; only a job that holds a slot is added, and its record says to what, so
--           that its ending takes it out; who counts already has the limits given from now on; a repeat changes nothing.
local epoch_key, counted_key = KEYS[1], KEYS[2]
local epoch, counted, nodes = ARGV[1], ARGV[2], tonumber(ARGV[3])
local NODE_KEYS, JOB_KEYS, KEYS_A_JOB, JOB = 2, 2 + nodes, 3, 6

-- INCLUDE epochs

local higher = fenced_by(epoch_key, epoch)
if higher then return {'fenced', higher} end

local is_new = (redis.call('GET', counted_key) or '') ~= counted
if is_new and counted == '' then
  redis.call('DEL', counted_key)
elseif is_new then
  redis.call('SET', counted_key, counted)
end

local function counts(kind) return string.find(counted .. ' ', ' ' .. kind .. ' ', 1, true) end

-- Count a reservation that is live on its node, if it is not counted yet.
local function add(first_key, slots_key, node, job_id, session, tenant, ...)
  local job_key = KEYS[first_key]
  local record = redis.pcall('HMGET', job_key, 'state', 'holder', 'session', 'tenant', 'held')
  local holder = record[2] and string.match(record[2], '^%S+')
  local is_same = record[1] == 'reserved' and holder == node and record[3] == session and (record[4] or '') == tenant
  if not is_same or not redis.call('ZSCORE', slots_key, job_id) then return 'stale' end
  local before, held, is_added, maxes = record[5] or '', {}, false, {...}
  for number, kind in ipairs({'session', 'tenant'}) do
    local is_counted = counts(kind) and (kind ~= 'tenant' or tenant ~= '')
    if is_counted and redis.call('ZADD', KEYS[first_key + number], maxes[number], job_id) == 1 then is_added = true end
    if is_counted or string.find(before, kind, 1, true) then held[#held + 1] = kind end
  end
  local after = table.concat(held, ' ')
  if after ~= before then redis.call('HSET', job_key, 'held', after) end
  return is_added and 'added' or 'counted'
end

local answers = {'accepted', is_new and 'changed' or 'unchanged'}
local first_key = JOB_KEYS + 1
for item = 3 + nodes + 1, #ARGV, JOB do
  local node_index = tonumber(ARGV[item])
  answers[#answers + 1] = add(first_key, KEYS[NODE_KEYS + node_index], ARGV[3 + node_index], unpack(ARGV, item + 1, item + 5))
  first_key = first_key + KEYS_A_JOB
end
return answers
