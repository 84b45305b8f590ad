#!lua flags=allow-oom
-- claim: take, renew or give up partitions of one cell. What is given up is told, so that the next owner need not poll.
-- KEYS[1] {cell}:owners             hash: partition -> "epoch owner until_ms lease_ms"
-- KEYS[2] {cell}:freed              stream
-- ARGV[1] owner (name+boot)   ARGV[2] lease_ms   ARGV[3] freed_max   ARGV[4..] items: partition, action (take | give_up)
-- RETURNS {now_ms, answer, ...}, one a partition: {"owned", epoch} | {"held", owner, until_ms} | {"given_up"}
-- INVARIANT a change of owner raises the epoch; claiming again as the holder renews under the same one; no lease lies
--   further ahead than its own length, whatever the clock did since it was written: where one does, all are looked at, for
--   those whom nobody claims yet are held by the dead.
local owners_key, freed_key = KEYS[1], KEYS[2]
local owner, lease_ms, freed_max = ARGV[1], tonumber(ARGV[2]), ARGV[3]

local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local answers, given_up = {now_ms}, {}
local went_back = false

-- INCLUDE streams

local function write(epoch, name, until_ms, length_text) return string.format('%s %s %.0f %s', epoch, name, until_ms, length_text) end

local function parse(stored)
  local epoch_text, holder, until_text, length_text = string.match(stored, '^(%d+) (%S+) (%d+) ?(%d*)')
  if not epoch_text then epoch_text, holder, until_text, length_text = '0', '-', '0', '' end -- no script has written it
  return epoch_text, holder, tonumber(until_text), length_text, now_ms + (tonumber(length_text) or lease_ms)
end

for i = 4, #ARGV, 2 do
  local partition, action = ARGV[i], ARGV[i + 1]
  local epoch_text, holder, until_ms, length_text, latest_ms = parse(redis.call('HGET', owners_key, partition) or '0 - 0 0')
  local epoch = tonumber(epoch_text)
  went_back = went_back or until_ms > latest_ms
  if action == 'give_up' then
    if holder == owner then
      redis.call('HSET', owners_key, partition, epoch_text .. ' - 0 0')
      given_up[#given_up + 1] = partition
    end
    answers[#answers + 1] = {'given_up'}
  elseif holder ~= owner and holder ~= '-' and until_ms > now_ms then
    answers[#answers + 1] = {'held', holder, math.min(until_ms, latest_ms)}
  else
    if holder ~= owner then epoch = math.max(epoch + 1, now_us) end
    epoch_text = string.format('%.0f', epoch)
    redis.call('HSET', owners_key, partition, write(epoch_text, owner, now_ms + lease_ms, ARGV[2]))
    answers[#answers + 1] = {'owned', epoch_text}
  end
end
if went_back then
  local owners = redis.call('HGETALL', owners_key)
  for i = 1, #owners, 2 do
    local epoch_text, holder, until_ms, length_text, latest_ms = parse(owners[i + 1])
    if until_ms > latest_ms then
      redis.call('HSET', owners_key, owners[i], write(epoch_text, holder, latest_ms, length_text))
    end
  end
end
if #given_up > 0 then
  tell(freed_key, 0, now_ms, 'MAXLEN', '~', freed_max, '*', 'partitions', table.concat(given_up, ' '))
end
return answers
