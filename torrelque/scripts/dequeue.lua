-- dequeue: move what is due to pending, then lease up to `wanted` tasks, the ids to adopt first.
-- Only when pending runs short are the leases looked at that have ended: their tasks go to pending and on.
-- An id that is final, or leased already, is dropped. An id without a payload may belong to a producer that is
-- half-way (not every producer writes in one step): it waits in dequeueing for the sweep to see it twice.
-- ARGV    1 wake channel   2 horizon   3 wanted   4 default lease, seconds   5 bound on the ids touched;
--         then ids to adopt: a waiter was handed them, and they stand in dequeueing
-- RETURNS 1 seconds until the next due or stale time, '' none or not known   2 1 = a bound was met, ask again
--         3 the ids that were dropped; then each task as one string, for that is what clients read fastest:
--         delivery number, lease and length of the id, a line each, then the id and the payload
-- ATOMIC  all of it; a first write that only removes is granted by a server whose memory is full
local wanted, default, bound = tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local dropped, reply = {}, {}
local touched, claimed, met, soonest = 0, 0, false, nil
redis.call('HLEN', tasks)
redis.call('ZCARD', working)
redis.call('ZCARD', delayed)
redis.call('LLEN', dequeueing)
redis.call('LLEN', pending)

local function claim(id, parked)
  local payload = redis.call('HGET', tasks, id)
  local state = read(id, 'status', 'dequeue_count', 'timeout')
  touched = touched + 1
  if not payload and state[1] ~= '3' and state[1] ~= '4' then
    redis.call('LPUSH', dequeueing, id)
    return
  end
  local seconds = lease(state[3], default)
  local stale = now + seconds
  if not payload or redis.call('ZADD', working, 'NX', stamp(stale), id) == 0 then
    dropped[#dropped + 1] = id
    return
  end
  local count = whole(state[2]) + 1
  write(id, 'status', '1', 'last_dequeue_time', stamp(now), 'dequeue_count', count)
  if seconds ~= tonumber(state[3]) then
    write(id, 'timeout', default)
  end
  soonest = math.min(soonest or stale, stale)
  claimed = claimed + 1
  reply[#reply + 1] = table.concat({ count, seconds, #id, id .. payload }, '\n')
end

local function claim_pending()
  while claimed < wanted and touched < bound do
    local id = redis.call('RPOP', pending)
    if not id then
      return
    end
    claim(id)
  end
end

-- Where the limit is reached, more may have ended: then what is pending falls short only for now.
local function promote_some(set, limit)
  local count = promote(set, limit, dropped)
  touched = touched + count
  met = met or count == limit
end

for i = 6, #ARGV do
  if redis.call('LREM', dequeueing, 1, ARGV[i]) == 1 then
    claim(ARGV[i])
  end
end
promote_some(delayed, math.floor(bound / 4))
claim_pending()
if claimed < wanted and touched < bound then
  promote_some(working, math.floor((bound - touched) / 2))
  claim_pending()
end
wake(working, soonest, ARGV[1], ARGV[2])
return { claimed < wanted and until_next() or '', (met or touched >= bound) and 1 or 0, dropped, unpack(reply) }
