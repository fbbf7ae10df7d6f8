-- state: read the states of tasks.
-- ARGV    ids
-- RETURNS for each task the values of status, timeout, result, dequeue_count, requeue_count, enqueue_time,
--         last_dequeue_time, last_requeue_time, release_time; nil where a field is not set
local reply = {}
for i, id in ipairs(ARGV) do
  reply[i] = redis.call(
    'HMGET', task .. ':' .. id, 'status', 'timeout', 'result', 'dequeue_count', 'requeue_count', 'enqueue_time',
    'last_dequeue_time', 'last_requeue_time', 'release_time'
  )
end
return reply
