-- enqueue: add tasks to the queue, at once or after a delay; an id that is known already changes nothing.
-- ARGV    1 wake channel   2 horizon, seconds; then for each task: id, payload, lease seconds, delay seconds
-- RETURNS for each task, as text with spaces between: 1 added | 0 known already
-- ATOMIC  all of the tasks, or none when Redis refuses to store the first
local soonest = nil
local reply = {}
redis.call('LLEN', pending)
redis.call('ZCARD', delayed)
for i = 3, #ARGV, 4 do
  local id, delay = ARGV[i], tonumber(ARGV[i + 3])
  if redis.call('EXISTS', task .. ':' .. id) == 1 or redis.call('HEXISTS', tasks, id) == 1 then
    reply[#reply + 1] = 0
  else
    local due = now + delay
    redis.call('HSET', tasks, id, ARGV[i + 1])
    write(id, 'status', delay > 0 and '2' or '0', 'enqueue_time', stamp(now), 'timeout', ARGV[i + 2])
    if delay > 0 then
      redis.call('ZADD', delayed, stamp(due), id)
      soonest = math.min(soonest or due, due)
    else
      redis.call('LPUSH', pending, id)
    end
    reply[#reply + 1] = 1
  end
end
wake(delayed, soonest, ARGV[1], ARGV[2])
return table.concat(reply, ' ')
