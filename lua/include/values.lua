-- What the scripts that clients call say of a value, or a key, that can be none.
local function wrong(name, value, expected)
  return name .. " = '" .. string.sub(tostring(value), 1, 64) .. "': expected " .. expected
end

-- A whole number within bounds, nil if the text is none.
local function whole(text, least, most)
  local number = text and string.find(text, '^%d+$') and tonumber(text)
  return number and number >= least and number <= most and number or nil
end

-- What is wrong with the first keys of a call, nil if nothing is: they are these of one tag, in this order.
local function fault_of_names(names)
  local before = string.sub(KEYS[1] or '', 1, -#names[1] - 1)
  for i, name in ipairs(names) do
    if KEYS[i] ~= before .. name then return wrong('KEYS[' .. i .. ']', KEYS[i], before .. name) end
  end
end
