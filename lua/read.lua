#!lua flags=no-writes,allow-oom
-- read: entries of streams, by bytes: whole, as many as fit; of others what they are, but not their bodies.
-- KEYS[1..] {cell}:jobs:<p> | {cell}:inbox:<node> | {cell}:freed, streams
-- ARGV[1] count, entries of each stream   ARGV[2] bytes_max, of all whole entries   ARGV[3] document_bytes_max
-- ARGV[4] payload_bytes_max   ARGV[5] other_bytes_max   ARGV[6] rest: heads | stop   ARGV[7..] a cursor each
-- RETURNS {stream, ...}: {"end", entry, ...} | {"more", entry, ...}: something may come after these
--   entry: {id, {field, value, ...}}, whole; {id, {field, value, ...}, document_bytes, payload_bytes, other_bytes}, its head:
--   the fields but `job` and `payload`, of those the short ones, and `job` where only another part is above its limit
-- INVARIANT an entry with a part above its limit is a head. One that does not fit is a head too (heads), or the answer ends
--   before it (stop), but for the first one. At most one large body is in memory at once.
local count, bytes_max = tonumber(ARGV[1]), tonumber(ARGV[2])
local document_bytes_max, payload_bytes_max, other_bytes_max = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local with_heads = ARGV[6] == 'heads'
local CURSORS, SHORT_BYTES_MAX, SHORT_MAX = 6, 1024, 64
local LARGE_BYTES, LOOKED_AT_BYTES_MAX = 2 ^ 20, 2 ^ 25 -- of so many a server makes an answer in 100 ms
local answers, sent_bytes, looked_at_bytes, is_full = {}, 0, 0, false

-- Bytes of document, of payload, and of all else with the names. A field that is there twice counts once as what it is.
local function measure(fields)
  local sizes, all = {}, 0
  for i = 1, #fields, 2 do
    local name, size = fields[i], #fields[i + 1]
    if name == 'job' or name == 'payload' then
      sizes[name] = size
    end
    all = all + #name + size
  end
  local document, payload = sizes.job or 0, sizes.payload or 0
  return document, payload, all - document - payload
end

local function short_ones(fields, with_document)
  local short, document = {}, nil
  for i = 1, #fields, 2 do
    local name, value = fields[i], fields[i + 1]
    if name == 'job' then
      document = value
    elseif name ~= 'payload' and #name + #value <= SHORT_BYTES_MAX and #short < 2 * SHORT_MAX then
      short[#short + 1], short[#short + 2] = name, value
    end
  end
  if with_document and document then
    short[#short + 1], short[#short + 2] = 'job', document
  end
  return short
end

-- What one entry is answered with; nothing when it has to wait. Its size is the second value.
local function show(entry)
  local document, payload, other = measure(entry[2])
  local size = document + payload + other
  local is_too_large = document > document_bytes_max or payload > payload_bytes_max or other > other_bytes_max
  if not is_too_large and (sent_bytes + size <= bytes_max or not with_heads and sent_bytes == 0) then
    sent_bytes = sent_bytes + size
    return entry, size
  end
  if is_too_large or with_heads then
    local with_document = is_too_large and document <= document_bytes_max
    sent_bytes = sent_bytes + (with_document and document or 0)
    return {entry[1], short_ones(entry[2], with_document), document, payload, other}, size
  end
  return nil, size
end

local function read(stream_key, cursor)
  local found = {'more'}
  while #found <= count and not is_full do
    local reply = redis.pcall('XRANGE', stream_key, '(' .. cursor, '+', 'COUNT', 1)
    if reply.err and not string.find(reply.err, 'invalid start ID', 1, true) then error(reply) end
    local entry = reply[1] -- none, too, after the highest id
    if not entry then
      found[1] = 'end'
      return found
    end
    local shown, size = show(entry)
    looked_at_bytes = looked_at_bytes + size
    is_full = not shown or looked_at_bytes > LOOKED_AT_BYTES_MAX
    if shown then
      found[#found + 1], cursor = shown, entry[1]
    end
    if size > LARGE_BYTES and shown ~= entry then
      reply, entry = nil, nil
      collectgarbage()
    end
  end
  return found
end

for i = 1, #KEYS do
  answers[i] = read(KEYS[i], ARGV[CURSORS + i])
end
return answers
