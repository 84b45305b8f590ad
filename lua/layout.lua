#!lua flags=allow-oom
-- layout: what every role must agree on, and the sources of the scripts for clients in other languages.
-- KEYS[1] {sched}:layout            hash
-- ARGV[1] n, the number of agreed fields   ARGV[2..] n pairs field, value; then pairs script:<name>, source
-- RETURNS {"written" | "kept", field, value, ...}: the agreed fields as stored (strings)
-- INVARIANT an agreed field, once written, never changes; script sources follow the newest caller that agrees.
local layout_key = KEYS[1]
local agreed = tonumber(ARGV[1])

local stored = {}
local exists = redis.call('EXISTS', layout_key) == 1
local same = true
for i = 1, agreed do
  local field, value = ARGV[2 * i], ARGV[2 * i + 1]
  local current = exists and redis.call('HGET', layout_key, field) or value
  if current ~= value then same = false end
  stored[#stored + 1] = field
  stored[#stored + 1] = current or ''
end

if same then
  for i = 2, #ARGV, 2 do redis.call('HSET', layout_key, ARGV[i], ARGV[i + 1]) end
end
return {exists and 'kept' or 'written', unpack(stored)}
