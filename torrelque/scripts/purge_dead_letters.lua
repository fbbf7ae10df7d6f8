-- purge_dead_letters: remove dead letters for good, and all that is known about them.
-- ARGV    1 none that died after this time ('' = the newest)   2 how many of the oldest to pass over   3 bound on the letters
--         then ids; without any, the oldest letters are meant
-- RETURNS 1 purged   2 how many were looked at, in order: go on behind them   3 how many of these were left alone
--         4 the time that argument 1 meant
-- ATOMIC  each letter by itself
local last = ARGV[1] ~= '' and ARGV[1] or string.format('%.17g', math.max(now, newest()))
local ids = {}
for i = 4, #ARGV do
  ids[#ids + 1] = ARGV[i]
end
if #ids == 0 then
  ids = redis.call('ZRANGEBYSCORE', dead, '-inf', last, 'LIMIT', ARGV[2], ARGV[3])
end
redis.call('HLEN', tasks)

local purged = 0
for _, id in ipairs(ids) do
  if redis.call('ZREM', dead, id) == 1 then
    redis.call('HDEL', dead_payloads, id)
    -- Where a foreign hand has made a live task of the same id, the state is that one's.
    if redis.call('HEXISTS', tasks, id) == 0 then
      redis.call('DEL', task .. ':' .. id)
    end
    purged = purged + 1
  end
end
return { purged, #ids, #ids - purged, last }
