-- sweep: one bounded step of giving back what has ended: stale leases, due delays, ids parked too long.
-- Parked ids are looked at from the oldest on. One that the last sweep saw too goes back (without a payload: it is
-- dropped); one seen for the first time is noted. `outgoing` holds the notes of the last sweep while a sweep runs.
-- KEYS    8 outgoing (SET)
-- ARGV    1 bound on the ids touched   2 default lease   3 how many parked ids this sweep has passed over,
--         '' = it has not begun with them, 'timed' = leave them alone
-- RETURNS 1 stale   2 due   3 undequeued   4 the ids that were dropped   5 what to pass as ARGV 3 to go on,
--         'end' = done   6 seconds until the next due or stale time, 'inf' = none
local outgoing = KEYS[8]
local budget, passed = tonumber(ARGV[1]), ARGV[3]
local dropped = {}
redis.call('LLEN', pending)
redis.call('LLEN', dequeueing)
redis.call('HLEN', tasks)

-- A time without an end would never come: such a lease gets one, such a delay is over.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', working, '+inf', '+inf', 'LIMIT', 0, budget)) do
  redis.call('ZREM', working, id)
  redis.call('ZADD', working, stamp(now + lease(read(id, 'timeout')[1], ARGV[2])), id)
  budget = budget - 1
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', delayed, '+inf', '+inf', 'LIMIT', 0, budget)) do
  redis.call('ZREM', delayed, id)
  redis.call('ZADD', delayed, stamp(now), id)
end

-- Where many are found there are more: this step then goes no further, and the next one begins with them.
local moved = 0
if passed == '' then
  moved = rebase_leases(ARGV[2]) + rebase_delays()
  budget = moved < LOOK and math.max(budget - moved, 0) or 0
end

local stale = promote(working, budget, dropped)
local due = promote(delayed, budget - stale, dropped)
budget = budget - stale - due

local undequeued = 0
if budget > 0 and passed == 'timed' then
  passed = 'end'
elseif budget > 0 then
  if passed == '' then
    passed = 0
    redis.call('UNLINK', outgoing)
    if redis.call('EXISTS', KEYS[3]) == 1 then
      redis.call('RENAME', KEYS[3], outgoing)
    end
  end
  local ids = redis.call('LRANGE', dequeueing, -passed - budget, -passed - 1)
  for i = #ids, 1, -1 do
    local id = ids[i]
    if redis.call('SREM', outgoing, id) == 0 then
      redis.call('SADD', KEYS[3], id)
      passed = passed + 1
    else
      redis.call('LREM', dequeueing, -1, id)
      undequeued = undequeued + put_back(id, dropped)
    end
  end
  if #ids < budget then
    redis.call('UNLINK', outgoing)
    passed = 'end'
  end
end
return { stale, due, undequeued, dropped, tostring(passed), until_next() }
