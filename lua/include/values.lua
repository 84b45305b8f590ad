local function wrong(name, value, expected)
  return name .. " = '" .. string.sub(tostring(value), 1, 64) .. "': expected " .. expected
end

-- A whole number within bounds, nil if the text is none.
local function whole(text, least, most)
  local number = text and string.find(text, '^%d+$') and tonumber(text)
  return number and number >= least and number <= most and number or nil
end
