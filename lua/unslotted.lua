#!lua flags=no-writes,allow-oom
-- unslotted: assignments in a node's inbox for which no slot is taken. There are none, unless its slots were deleted.
-- KEYS[1] {cell}:inbox:<node>       stream
-- KEYS[2] {cell}:slots:<node>       zset
-- ARGV[1] after: the id of the last entry of the page before, or 0   ARGV[2] count: entries of a page
-- RETURNS {next, id, job_id, session, tenant, token, ...}: the id to go on from, empty after the last page; then of each its
--   own id and its fields
-- INVARIANT nothing is written, and no body is in the answer. What `reserve` has not written is no assignment.
local inbox_key, slots_key = KEYS[1], KEYS[2]
local after, count = ARGV[1], tonumber(ARGV[2])

-- INCLUDE assignments

local entries = redis.call('XRANGE', inbox_key, '(' .. after, '+', 'COUNT', count)
local found = {#entries == count and entries[count][1] or ''}
for _, entry in ipairs(entries) do
  local job_id, token, fields = assignment_of(entry)
  if job_id and not redis.call('ZSCORE', slots_key, job_id) then
    local first = #found
    found[first + 1], found[first + 2], found[first + 3] = entry[1], job_id, fields.session or ''
    found[first + 4], found[first + 5] = fields.tenant or '', token
  end
end
return found
