-- A stream whose highest id is used takes no entry any more, and no command lowers that id: only a stream made anew does.
local AHEAD_MS_MAX = 86400000 -- no clock is wrong by more; an id further ahead was made by nobody's clock

local function last_id_of(stream_key)
  local info = redis.pcall('XINFO', 'STREAM', stream_key)
  for i = 1, #info, 2 do
    if info[i] == 'last-generated-id' then return info[i + 1] end
  end
end

local function is_absurd(id, at_ms) return tonumber(string.match(id, '^%d+')) > at_ms + AHEAD_MS_MAX end

local function value_of(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

-- Make a stream anew with its newest entries, at most `kept`, in their order; absurd ids become new ones. whole: not unless
-- these are all, and no record names one of those ids. Returns whether it takes entries again.
local function make_anew(stream_key, kept, at_ms, whole)
  local last_id = last_id_of(stream_key)
  if not last_id or not is_absurd(last_id, at_ms) then return false end
  if whole and redis.call('XLEN', stream_key) > kept then return false end
  local entries = kept > 0 and redis.call('XREVRANGE', stream_key, '+', '-', 'COUNT', kept) or {}
  for _, entry in ipairs(entries) do
    if whole and is_absurd(entry[1], at_ms) and value_of(entry[2], 'job_id') then return false end
  end
  local rest_ms = redis.call('PTTL', stream_key)
  redis.call('DEL', stream_key)
  for i = #entries, 1, -1 do
    local id, fields = entries[i][1], entries[i][2]
    redis.call('XADD', stream_key, is_absurd(id, at_ms) and '*' or id, unpack(fields, 1, math.min(#fields, 7000)))
  end
  if rest_ms > 0 and #entries > 0 then redis.call('PEXPIRE', stream_key, rest_ms) end
  return true
end

local OUTCOMES_KEPT = 1000 -- of a feed of outcomes that is made anew: more than anybody who reads it is behind

-- Append to a stream of which only what is newest matters. Returns whether that is done.
local function tell(feed_key, kept, at_ms, ...)
  local added = redis.pcall('XADD', feed_key, ...)
  if type(added) == 'table' and make_anew(feed_key, kept, at_ms) then added = redis.pcall('XADD', feed_key, ...) end
  return type(added) ~= 'table'
end
