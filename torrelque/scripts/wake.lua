-- wake: tell the sleepers of all processes that a time has come closer than they know.
-- They never sleep longer than `horizon`, so a later time needs no message; nor does one behind an earlier one.
-- A user who may not publish still enqueues: sleepers then notice within the horizon.
local function wake(set, soonest, channel, horizon)
  if soonest and soonest - now < tonumber(horizon) then
    local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
    if first[2] and tonumber(first[2]) >= soonest - 0.000001 then
      redis.pcall('PUBLISH', channel, stamp(soonest - now))
    end
  end
end
