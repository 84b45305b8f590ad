#!lua flags=allow-oom
-- hold: count reservations against their limits again, after the set of a limit was deleted.
-- KEYS a job each: {cell}:job:<job_id> hash, {cell}:held:session:<id> set, {cell}:held:tenant:<id> set
-- ARGV items: job_id, session, tenant, token
-- RETURNS {answer, ...}, one a job: "held" | "right" | "stale"
-- INVARIANT only the live reservation with this token is counted, for the kinds that its record names. A repeat is "right".
local answers = {}
for i = 1, #ARGV, 4 do
  local job_id, session, tenant, token = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local first = (i - 1) / 4 * 3 + 1
  local record = redis.call('HMGET', KEYS[first], 'state', 'holder', 'held', 'session', 'tenant')
  local answer = 'right'
  if record[1] ~= 'reserved' or string.match(record[2] or '', '%S+$') ~= token
    or record[4] ~= session or (record[5] or '') ~= tenant then
    answer = 'stale'
  else
    for kind in string.gmatch(record[3] or '', '%a+') do
      local offset = kind == 'session' and 1 or kind == 'tenant' and 2
      if offset and redis.call('SADD', KEYS[first + offset], job_id) == 1 then answer = 'held' end
    end
  end
  answers[#answers + 1] = answer
end
return answers
