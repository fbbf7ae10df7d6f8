-- rebase: bring closer what a clock of Redis that was put back has moved away.
-- Some ids of a set whose time is still far: the last ones, and some in between, where the clock happens to point.
local SLACK, LOOK = 60, 25
local function far(set)
  local found, seen = {}, {}
  local from = clock[2] % math.max(redis.call('ZCARD', set), 1)
  for _, first in ipairs({ -LOOK, from }) do
    local some = redis.call('ZRANGE', set, first, first + LOOK - 1, 'WITHSCORES')
    for i = 1, #some, 2 do
      local id, time = some[i], tonumber(some[i + 1])
      if time > now + SLACK and time < 1e11 and not seen[id] then
        seen[id] = true
        found[#found + 1] = { id, time }
      end
    end
  end
  return found
end

local function move(set, id, time)
  redis.call('ZREM', set, id)
  redis.call('ZADD', set, stamp(time), id)
end

-- A lease that ends later than one that began now, and than any extension asked for, began in the future.
-- RETURNS how many leases now end a whole lease from now
local function rebase_leases(default)
  local count = 0
  for _, each in ipairs(far(working)) do
    local state = read(each[1], 'timeout', 'longest_lease')
    local own = lease(state[1], default)
    if each[2] > now + math.max(own, lease(state[2], own)) + SLACK then
      move(working, each[1], now + own)
      count = count + 1
    end
  end
  return count
end

local function moment(text)
  local time = tonumber(text)
  return time and time > 0 and time < 1e11 and time or 0
end

-- Any delay is legal; but what last happened to the task cannot be in the future. It is taken to happen now, once:
-- `rebased` tells of which moment that was said, and when.
-- RETURNS how many delays now pass earlier
local function rebase_delays()
  local count = 0
  for _, each in ipairs(far(delayed)) do
    local id, due = each[1], each[2]
    local state = read(id, 'enqueue_time', 'last_dequeue_time', 'last_requeue_time', 'rebased')
    local last = math.max(moment(state[1]), moment(state[2]), moment(state[3]))
    local said, at = string.match(state[4] or '', '^(%S+) (%S+)$')
    local since = said == stamp(last) and moment(at) or last
    if since > now + SLACK and since <= due then
      move(delayed, id, due - since + now)
      write(id, 'rebased', stamp(last) .. ' ' .. stamp(now))
      count = count + 1
    end
  end
  return count
end
