-- End a job that holds no slot. Its record keeps what is still read of it, for `keep_ms`. Returns the outcome.
-- record: its fields before, by name.
-- ending: how it ends, flat, for the record and for the outcome.
-- dead_id: where its body is kept, nil if it is not.
local function end_job(job_key, job_id, record, ending, ended_ms, detail, keep_ms, dead_id)
  add(ending, 'submitted_ms', record.submitted_ms)
  add(ending, 'ended_ms', ended_ms)
  add(ending, 'life', record.life, '1')
  add(ending, 'attempts', record.attempts, '0')
  local outcome, kept = {'job_id', job_id, unpack(ending)}, {unpack(ending)}
  add(kept, 'holder', record.holder)
  add(kept, 'nonce', record.nonce)
  add(kept, 'dead_id', dead_id)
  redis.call('DEL', job_key)
  redis.call('HSET', job_key, unpack(kept))
  redis.call('PEXPIRE', job_key, keep_ms)
  local node, token = string.match(record.holder or '', '^(%S+) (%S+)$')
  add(outcome, 'node', node)
  add(outcome, 'token', token)
  add(outcome, 'detail', detail, '')
  return outcome
end
