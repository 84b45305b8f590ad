-- Add a field to a flat list, unless it is nil or what is meant without it.
local function add(fields, name, value, default)
  if value and value ~= default then
    fields[#fields + 1], fields[#fields + 2] = name, value
  end
end

-- Tell outcomes in the feed of the cell, and each in that of its producer, which goes when nothing was told in it for as long
-- as records are kept. Feeds come last and may fail: the truth is in the records.
local function tell_outcomes(outcomes, reply_keys, results_key, results_max, retention_ms, at_ms)
  local replied = {}
  for i, outcome in ipairs(outcomes) do
    local reply_key = reply_keys[i]
    tell(results_key, OUTCOMES_KEPT, at_ms, 'MAXLEN', '~', results_max, '*', unpack(outcome))
    if reply_key ~= results_key then
      tell(reply_key, OUTCOMES_KEPT, at_ms, 'MAXLEN', '~', results_max, '*', unpack(outcome))
      replied[reply_key] = true
    end
  end
  for reply_key in pairs(replied) do
    redis.call('PEXPIRE', reply_key, retention_ms)
  end
end
