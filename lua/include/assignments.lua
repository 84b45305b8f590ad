local TOKEN_DIGITS_MAX = 16

-- The job and the token of an entry of an inbox, and its other fields; nothing for one that `reserve` has not written.
local function assignment_of(entry)
  local fields = {}
  for i = 1, #entry[2], 2 do
    fields[entry[2][i]] = entry[2][i + 1]
  end
  local token = string.match(fields.reservation or '', '^(%d+) ')
  if (fields.job_id or '') == '' or not token or #token > TOKEN_DIGITS_MAX then return nil end
  return fields.job_id, token, fields
end
