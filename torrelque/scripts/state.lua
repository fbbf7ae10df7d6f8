-- state: read the states of tasks.
-- ARGV    ids
-- RETURNS for each task the values of status, timeout, result, dequeue_count, requeue_count, enqueue_time,
--         last_dequeue_time, last_requeue_time, release_time; nil where a field is not set, and for each of a state
--         key of a foreign type, which is no error of its neighbours
local NONE = { false, false, false, false, false, false, false, false, false }
local reply = {}
for i, id in ipairs(ARGV) do
  local values = redis.pcall(
    'HMGET', task .. ':' .. id, 'status', 'timeout', 'result', 'dequeue_count', 'requeue_count', 'enqueue_time',
    'last_dequeue_time', 'last_requeue_time', 'release_time'
  )
  if values.err and not string.find(values.err, 'WRONGTYPE', 1, true) then
    return values
  end
  reply[i] = values.err and NONE or values
end
return reply
