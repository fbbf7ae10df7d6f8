-- requeue: give working tasks back to the queue, at once or after a delay.
-- ARGV    1 wake channel   2 horizon; then for each task: id, delivery number ('' = any), delay seconds,
--         lease seconds from now on ('' = as before)
-- RETURNS for each task, as text with spaces between: 1 requeued | 0 no such task | -1 not working
--         | -2 a later delivery holds it
-- ATOMIC  each task by itself; what is refused writes nothing
local soonest = nil
local reply = {}
redis.call('LLEN', pending)
redis.call('ZCARD', delayed)
for i = 3, #ARGV, 4 do
  local id, delay = ARGV[i], tonumber(ARGV[i + 2])
  local said = verdict(id, ARGV[i + 1], redis.call('ZSCORE', working, id))
  if said == 1 and redis.call('HEXISTS', tasks, id) == 0 then
    said = 0
  end
  if said == 1 then
    redis.call('ZREM', working, id)
    local state = read(id, 'requeue_count', 'timeout')
    local seconds = ARGV[i + 3] ~= '' and ARGV[i + 3] or state[2] or ''
    if delay > 0 then
      local due = now + delay
      redis.call('ZADD', delayed, stamp(due), id)
      write(id, 'status', '2', 'timeout', seconds)
      soonest = math.min(soonest or due, due)
    else
      local count = whole(state[1]) + 1
      redis.call('LPUSH', pending, id)
      write(id, 'status', '0', 'timeout', seconds, 'last_requeue_time', stamp(now), 'requeue_count', count)
    end
  end
  reply[#reply + 1] = said
end
wake(delayed, soonest, ARGV[1], ARGV[2])
return table.concat(reply, ' ')
