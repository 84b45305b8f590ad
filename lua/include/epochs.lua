-- The highest epoch that the cell has seen, if it is above the caller's. If not, the caller's is stored as the highest.
local function fenced_by(epoch_key, epoch)
  local highest = redis.call('GET', epoch_key) or '0'
  if not tonumber(highest) then highest = '0' end -- no script has written it
  if tonumber(epoch) < tonumber(highest) then return highest end
  if tonumber(epoch) > tonumber(highest) then redis.call('SET', epoch_key, epoch) end
end
