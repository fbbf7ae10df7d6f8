-- promote: give back what has ended, to the tail of pending.
-- An id without a payload is a ghost: it is dropped, and so is its state. One that is final is dropped too, and its
-- payload, if others left one; its state is kept.
-- RETURNS 1 it went to pending | 0 it was added to `dropped`
local function put_back(id, dropped)
  local state = read(id, 'requeue_count', 'status')
  local final = is_final(state[2])
  if not final and redis.call('HEXISTS', tasks, id) == 1 then
    redis.call('LPUSH', pending, id)
    write(id, 'status', '0', 'last_requeue_time', stamp(now), 'requeue_count', whole(state[1]) + 1)
    return 1
  end
  dropped[#dropped + 1] = id
  if final then
    redis.call('HDEL', tasks, id)
  else
    redis.call('DEL', task .. ':' .. id)
  end
  return 0
end

-- Put back the ids of a sorted set whose time has come, at most `limit` of them.
-- RETURNS how many ids left the set, ghosts too
local function promote(set, limit, dropped)
  local ids = redis.call('ZRANGEBYSCORE', set, '-inf', stamp(now), 'LIMIT', 0, limit)
  for _, id in ipairs(ids) do
    redis.call('ZREM', set, id)
    put_back(id, dropped)
  end
  return #ids
end

-- RETURNS seconds until the next due or stale time as text, 'inf' when there is none
local function until_next()
  local soonest = nil
  for _, set in ipairs({ delayed, working }) do
    local first = redis.call('ZRANGE', set, 0, 0, 'WITHSCORES')
    local time = tonumber(first[2])
    if time and (not soonest or time < soonest) then
      soonest = time
    end
  end
  return soonest and stamp(math.max(soonest - now, 0)) or 'inf'
end
