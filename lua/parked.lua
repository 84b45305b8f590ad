#!lua flags=no-writes,allow-oom
-- parked: which jobs have a body among the parked ones, a page at a time.
-- KEYS[1] {cell}:parked             stream
-- KEYS[2] {cell}:delayed            zset
-- ARGV[1] after: the id of the last entry of the page before, or 0   ARGV[2] count: entries of a page
-- RETURNS {next, id, job_id, ...}: the id to go on from, empty after the last page; of those that are not in `delayed` the
--   id and the job, empty for an entry that no script has written
-- INVARIANT nothing is written, and no body is in the answer.
local parked_key, delayed_key = KEYS[1], KEYS[2]
local after, count = ARGV[1], tonumber(ARGV[2])

local entries = redis.call('XRANGE', parked_key, '(' .. after, '+', 'COUNT', count)
local found = {#entries == count and entries[count][1] or ''}
for _, entry in ipairs(entries) do
  local job_id = ''
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'job_id' then job_id = entry[2][i + 1] end
  end
  if job_id == '' or not redis.call('ZSCORE', delayed_key, job_id) then
    found[#found + 1], found[#found + 2] = entry[1], job_id
  end
end
return found
