-- Document and payload of an entry, each empty where it has none, whatever else somebody has written into it.
local function body_of(entry)
  local fields, document, payload = entry[2], '', ''
  for i = 1, #fields, 2 do
    if fields[i] == 'job' then document = fields[i + 1] elseif fields[i] == 'payload' then payload = fields[i + 1] end
  end
  return document, payload
end
