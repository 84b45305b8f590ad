#!lua flags=allow-oom
-- reopen: put the set of nodes with room right, after it was deleted or somebody has written into it.
-- KEYS[1] {cell}:capacity           hash: node -> "slots boot reason"
-- KEYS[2] {cell}:open               set
-- KEYS[3] {cell}:freed              stream
-- KEYS[4..] a node each: {cell}:slots:<node> zset
-- ARGV[1] freed_max   ARGV[2..] items: node
-- RETURNS {answer, ...}, one a node: "opened" | "closed" | "right"
-- INVARIANT a node is in the set exactly when it has a free slot; one that is put into it is told. A repeat is "right".
local capacity_key, open_key, freed_key = KEYS[1], KEYS[2], KEYS[3]
local freed_max = ARGV[1]

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- INCLUDE streams

local answers, opened = {}, {}
for i = 2, #ARGV do
  local node, slots_key = ARGV[i], KEYS[i + 2]
  local slots = tonumber(string.match(redis.call('HGET', capacity_key, node) or '', '^%S+')) or 0
  local answer = 'right'
  if redis.call('ZCARD', slots_key) < slots then
    if redis.call('SADD', open_key, node) == 1 then
      answer = 'opened'
      opened[#opened + 1] = node
    end
  elseif redis.call('SREM', open_key, node) == 1 then
    answer = 'closed'
  end
  answers[i - 1] = answer
end
if #opened > 0 then
  tell(freed_key, 0, now_ms, 'MAXLEN', '~', freed_max, '*', 'nodes', table.concat(opened, ' '))
end
return answers
