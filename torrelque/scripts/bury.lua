-- bury: make a dead letter of a task that has left its place: rejected, and kept until somebody requeues or purges it.
-- It is no live task any more, so it leaves `tasks`, which every release of the library counts and delivers from.
local function bury(id, payload, reason)
  redis.call('HDEL', tasks, id)
  redis.call('HSET', dead_payloads, id, payload)
  redis.call('ZADD', dead, stamp(now), id)
  if reason then
    write(id, 'status', '4', 'release_time', stamp(now), 'result', reason)
  else
    write(id, 'status', '4', 'release_time', stamp(now))
  end
  redis.call('PERSIST', task .. ':' .. id)
end
