-- release: take working tasks out of the queue, keeping the result for a while when there is one.
-- ARGV    for each task: id, delivery number ('' = any), status, milliseconds to keep (0 = drop the state), result
-- RETURNS for each task, as text with spaces between: 1 released | 0 no such task | -1 not working | -2 a later delivery holds it
-- ATOMIC  each task by itself: leave working, drop the payload, keep or drop the state; or nothing
local reply = {}
redis.call('HLEN', tasks)
for i = 1, #ARGV, 5 do
  local id, keep = ARGV[i], tonumber(ARGV[i + 3])
  local said = verdict(id, ARGV[i + 1])
  if said == 1 then
    redis.call('ZREM', working, id)
    redis.call('HDEL', tasks, id)
    if keep > 0 then
      write(id, 'status', ARGV[i + 2], 'result', ARGV[i + 4], 'release_time', stamp(now))
      redis.call('PEXPIRE', task .. ':' .. id, keep)
    else
      redis.call('DEL', task .. ':' .. id)
    end
  end
  reply[#reply + 1] = said
end
return table.concat(reply, ' ')
