-- bury: make a dead letter of a task that has left its place: rejected, and kept until somebody requeues or purges it.
-- It is no live task any more, so it leaves `tasks`, which every release of the library counts and delivers from.
-- It stands behind all others, also where the clock was put back: who reads on behind the last one then meets it, and who
-- means all that are there does not.
local function bury(id, payload, reason)
  local last = newest()
  local time = stamp(last < 1e11 and math.max(now, last + 0.000001) or now)
  redis.call('HDEL', tasks, id)
  redis.call('HSET', dead_payloads, id, payload)
  redis.call('ZADD', dead, time, id)
  if reason then
    write(id, 'status', '4', 'release_time', time, 'result', reason)
  else
    write(id, 'status', '4', 'release_time', time)
  end
  redis.call('PERSIST', task .. ':' .. id)
end
