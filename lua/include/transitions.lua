-- What this script may do with a job: of each state (false: no record) the events, with the state that they lead to.
-- TRANSITIONS

-- The state that an event leads to; nil if the transition table has no such row, and then the script changes nothing.
local function next_state(state, event)
  local events = TRANSITIONS[state or false]
  return events and events[event]
end
