-- dequeue: move what is due to pending, then lease up to `wanted` tasks, the ids to adopt first.
-- Only when pending runs short are the leases looked at that have ended: their tasks go to pending and on.
-- A task that was delivered as often as it may be is given up here: this is where deliveries are counted, so those
-- whose consumer died count too. An id that is final, or leased already, is dropped. An id without a payload may belong
-- to a producer that is half-way (not every producer writes in one step): it waits in dequeueing until the sweep has
-- seen it twice.
-- ARGV    1 wake channel   2 horizon   3 wanted   4 default lease, seconds   5 bound on the ids touched
--         6 most deliveries of a task ('' = no limit)   7 milliseconds to keep the state of one that is given up
--         ('' = it becomes a dead letter)   8 why, which becomes its result;
--         then ids to adopt: a waiter was handed them, and they stand in dequeueing
-- RETURNS one string: a client written in Python takes as long for each part of an answer as Redis for a whole task.
--         A line of numbers with spaces between: seconds until the next due or stale time ('inf' = none or not known),
--         1 = a bound was met (ask again), how many ids were dropped, how many were given up; for each task delivery
--         number, lease, bytes of its id, bytes of its payload; bytes of each id that was dropped, then of each that
--         was given up. Then, end to end, what has these lengths
-- ATOMIC  all of it; a first write that only removes is granted by a server whose memory is full
local wanted, default, bound = tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local limit, keep, reason = tonumber(ARGV[6]), ARGV[7], ARGV[8]
local dropped, given_up, sheet, bodies = {}, {}, { 'inf', 0, 0, 0 }, {}
local claimed, touched, bytes, buried, met, soonest = 0, 0, 0, 0, false, nil
local moment = stamp(now)
local ends = {}
redis.call('HLEN', tasks)
redis.call('ZCARD', working)
redis.call('ZCARD', delayed)
redis.call('LLEN', dequeueing)
redis.call('LLEN', pending)

-- End a task that is not to be delivered again.
local function give_up(id, payload)
  if keep == '' then
    bury(id, payload, reason)
  else
    redis.call('HDEL', tasks, id)
    write(id, 'status', '4', 'release_time', moment, 'result', reason)
    redis.call('PEXPIRE', task .. ':' .. id, keep)
  end
  given_up[#given_up + 1] = id
  buried = buried + #payload
end

-- Lease what was just taken out of a list. What is read and stored for all ids is so with one command.
local function claim(ids)
  local payloads = redis.call('HMGET', tasks, unpack(ids))
  local held = redis.call('ZMSCORE', working, unpack(ids))
  local leases, leased, n = {}, {}, 0
  touched = touched + #ids
  for i, id in ipairs(ids) do
    local payload = payloads[i]
    local state = read(id, 'status', 'dequeue_count', 'timeout')
    local count = whole(state[2]) + 1
    if is_final(state[1]) then
      redis.call('HDEL', tasks, id)
      dropped[#dropped + 1] = id
    elseif not payload then
      redis.call('LPUSH', dequeueing, id)
    elseif held[i] or leased[id] then
      dropped[#dropped + 1] = id
    elseif limit and count > limit and count > limit + whole(read(id, 'forgiven')[1]) then
      give_up(id, payload)
    else
      local seconds = lease(state[3], default)
      if not ends[seconds] then
        local stale = now + seconds
        ends[seconds] = stamp(stale)
        soonest = math.min(soonest or stale, stale)
      end
      leased[id] = true
      leases[n + 1], leases[n + 2] = ends[seconds], id
      n = n + 2
      write(id, 'status', '1', 'last_dequeue_time', moment, 'dequeue_count', count)
      if seconds ~= tonumber(state[3]) then
        write(id, 'timeout', default)
      end
      local s, b = 4 * claimed, 2 * claimed
      sheet[s + 5], sheet[s + 6], sheet[s + 7], sheet[s + 8] = count, seconds, #id, #payload
      bodies[b + 1], bodies[b + 2] = id, payload
      claimed = claimed + 1
      bytes = bytes + #payload
    end
  end
  if n > 0 then
    redis.call('ZADD', working, unpack(leases))
  end
end

-- The first few tell how large they are, and so how many more make an answer of a bearable length.
local FEW, MAX_BYTES = 16, 4194304
local function claim_pending()
  while claimed < wanted and touched < bound and bytes + buried < MAX_BYTES do
    local fit = bytes == 0 and FEW or math.ceil((MAX_BYTES - bytes) * claimed / bytes)
    local room = math.min(wanted - claimed, bound - touched, fit)
    local ids = redis.call('RPOP', pending, room)
    if ids then
      claim(ids)
    end
    if not ids or #ids < room then
      return
    end
  end
end

-- Where the limit is reached, more may have ended: then what is pending falls short only for now.
local function promote_some(set, limit)
  local count = promote(set, limit, dropped)
  touched = touched + count
  met = met or count == limit
end

local adopted = {}
for i = 9, #ARGV do
  if redis.call('LREM', dequeueing, 1, ARGV[i]) == 1 then
    adopted[#adopted + 1] = ARGV[i]
  end
end
if #adopted > 0 then
  claim(adopted)
end
promote_some(delayed, math.floor(bound / 4))
claim_pending()
if claimed < wanted and touched < bound and bytes + buried < MAX_BYTES then
  promote_some(working, math.floor((bound - touched) / 2))
  claim_pending()
end
wake(working, soonest, ARGV[1], ARGV[2])
if claimed < wanted then
  sheet[1] = until_next()
end
if met or touched >= bound or bytes + buried >= MAX_BYTES then
  sheet[2] = 1
end
sheet[3], sheet[4] = #dropped, #given_up
for _, ids in ipairs({ dropped, given_up }) do
  for _, id in ipairs(ids) do
    sheet[#sheet + 1] = #id
    bodies[#bodies + 1] = id
  end
end
return table.concat(sheet, ' ') .. '\n' .. table.concat(bodies)
