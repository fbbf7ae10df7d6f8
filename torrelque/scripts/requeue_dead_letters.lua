-- requeue_dead_letters: give dead letters back to the queue, at its tail, where their attempts begin anew.
-- The number of a delivery is a fencing token and never begins anew: what was counted until now is forgiven.
-- ARGV    1 none that died after this time ('' = the newest)   2 how many of the oldest to pass over   3 bound on the letters
--         then ids; without any, the oldest letters are meant
-- RETURNS 1 requeued   2 how many were looked at, in order: go on behind them   3 how many of these were left alone
--         4 the time that argument 1 meant
-- ATOMIC  each letter by itself; ZREM comes first so that a server whose memory is full still requeues
local last = ARGV[1] ~= '' and ARGV[1] or string.format('%.17g', math.max(now, newest()))
local ids = {}
for i = 4, #ARGV do
  ids[#ids + 1] = ARGV[i]
end
if #ids == 0 then
  ids = redis.call('ZRANGEBYSCORE', dead, '-inf', last, 'LIMIT', ARGV[2], ARGV[3])
end
redis.call('HLEN', tasks)
redis.call('LLEN', pending)

local MAX_BYTES = 4194304
local requeued, looked, left, bytes = 0, 0, 0, 0
for _, id in ipairs(ids) do
  if bytes >= MAX_BYTES then
    break
  end
  looked = looked + 1
  -- Where a foreign hand has made a live task of the same id, that one lives on, and this one stays.
  if redis.call('HEXISTS', tasks, id) == 0 and redis.call('ZREM', dead, id) == 1 then
    local payload = redis.call('HGET', dead_payloads, id)
    redis.call('HDEL', dead_payloads, id)
    local state = read(id, 'dequeue_count', 'requeue_count')
    if payload then
      redis.pcall('HDEL', task .. ':' .. id, 'result', 'release_time')
      redis.call('HSET', tasks, id, payload)
      redis.call('LPUSH', pending, id)
      write(
        id, 'status', '0', 'last_requeue_time', stamp(now), 'requeue_count', whole(state[2]) + 1,
        'forgiven', whole(state[1])
      )
      requeued = requeued + 1
      bytes = bytes + #payload
    else
      redis.call('DEL', task .. ':' .. id)
    end
  else
    left = left + 1
  end
end
return { requeued, looked, left, last }
