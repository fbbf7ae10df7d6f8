-- extend: let the leases of working tasks end `lease` seconds from now, whatever was left of them.
-- ARGV    1 wake channel   2 horizon   3 default lease, seconds; then for each task: id, delivery number
--         ('' = any), lease seconds ('' = the task's own)
-- RETURNS for each task, as text with spaces between: the new end of the lease | 0 no such task | -1 not working
--         | -2 a later delivery holds it
-- An extension that is longer than the task's own lease is noted, so that a sweep can tell it from a lease that a clock
-- which was put back has left in the future.
-- ATOMIC  each task by itself; ZREM comes first so that a server whose memory is full still extends
local soonest = nil
local reply = {}
for i = 4, #ARGV, 3 do
  local id = ARGV[i]
  local said = verdict(id, ARGV[i + 1], redis.call('ZSCORE', working, id))
  if said == 1 then
    local state = read(id, 'timeout', 'longest_lease')
    local own = lease(state[1], ARGV[3])
    local seconds = lease(ARGV[i + 2], own)
    local stale = now + seconds
    redis.call('ZREM', working, id)
    redis.call('ZADD', working, stamp(stale), id)
    if seconds > math.max(own, lease(state[2], own)) then
      write(id, 'longest_lease', ARGV[i + 2])
    end
    soonest = math.min(soonest or stale, stale)
    said = stamp(stale)
  end
  reply[#reply + 1] = said
end
wake(working, soonest, ARGV[1], ARGV[2])
return table.concat(reply, ' ')
