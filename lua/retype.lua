#!lua flags=allow-oom
-- retype: delete keys in which somebody has stored another type than scripts do: they are made anew, as after a DEL.
-- KEYS[1..] any key but {cell}:job:<job_id> and {cell}:result:<job_id>, which nobody could write again
-- ARGV[1..] the type that belongs into each: hash, set, stream, string or zset
-- RETURNS {answer, ...}, one a key: {"deleted", the type that was there, the first bytes of a string} | {"right"}: it has the
--   type that belongs there, or is not there
-- INVARIANT a key of its own type is not touched.
local SHOWN_MAX = 40

local answers = {}
for i = 1, #KEYS do
  local stored = redis.call('TYPE', KEYS[i]).ok
  answers[i] = {'right'}
  if stored ~= 'none' and stored ~= ARGV[i] then
    answers[i] = {'deleted', stored, stored == 'string' and redis.call('GETRANGE', KEYS[i], 0, SHOWN_MAX - 1) or ''}
    redis.call('DEL', KEYS[i])
  end
end
return answers
