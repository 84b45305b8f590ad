#!lua flags=allow-oom
-- command: ask the leading manager for something, also while memory is full: an operator may have to help just then.
-- KEYS[1] {sched}:commands   stream
-- ARGV[1] document   ARGV[2] commands_max
-- RETURNS {"added", id} | {"refused", error}: the stream takes no entry; an error when a value can be none
-- INVARIANT one entry more in the stream, and nothing else. A repeat is another one, which comes to the same.
local commands_key = KEYS[1]
local document, commands_max = ARGV[1], ARGV[2]
local DOCUMENT_BYTES_MAX = 1048576

local COMMANDS_MIN = 1000 -- entries: nobody may drop what others ask for

-- INCLUDE values

if not document or document == '' or #document > DOCUMENT_BYTES_MAX then
  return redis.error_reply('ERR command: size of the document = ' .. #(document or '') .. ': expected 1 to ' .. DOCUMENT_BYTES_MAX .. ' bytes')
elseif not whole(commands_max, COMMANDS_MIN, 1e15) then
  return redis.error_reply('ERR command: ' .. wrong('commands_max', commands_max, 'a whole number from ' .. COMMANDS_MIN))
end
local fault = fault_of_names({'commands'})
if fault then return redis.error_reply('ERR command: ' .. fault) end
local id = redis.pcall('XADD', commands_key, 'MAXLEN', commands_max, '*', 'command', document)
if type(id) == 'table' then return {'refused', id.err} end
return {'added', id}
