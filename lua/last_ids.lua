#!lua flags=no-writes,allow-oom
-- last_ids: up to where streams have come. Whoever reads one and is further than that has read what the server lost.
-- KEYS {cell}:jobs:<p>, {cell}:inbox:<node>, {cell}:freed, {cell}:results, {cell}:results:<reply_to>, streams, any of them
-- ARGV none
-- RETURNS {id, ...}, one a stream: the highest id that it has ever had; empty: there is no such stream
-- INVARIANT nothing is written. Not XINFO itself, because its answer has the bodies of two entries of each stream.
local ids = {}
for i, key in ipairs(KEYS) do
  local info = redis.pcall('XINFO', 'STREAM', key)
  ids[i] = ''
  for field = 1, #info, 2 do
    if info[field] == 'last-generated-id' then ids[i] = info[field + 1] end
  end
end
return ids
