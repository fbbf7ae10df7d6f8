-- mend: judge ids that seemed wrong before, and put right what still is.
-- A task keeps one place: the lease that it has, else the place that its state names, else pending, of two in a list
-- the older one. What has a payload and is not final goes on living. What belongs to no task goes.
-- ARGV    1 indexes in pending to look from   2 the same in dequeueing   3 default lease   4 milliseconds to keep a
--         final state; then for each task: id, the words that it is judged by, what its state was before a walk that
--         has not met it
-- RETURNS how many ids were cut out of pending, how many of dequeueing; for each task the words that were put right, of
--         the first ones only where the rest is too much for one script
-- ATOMIC  all of them; the first write only removes, so that a server whose memory is full is mended too
local default, keep = ARGV[3], ARGV[4]
local cuts = { [pending] = {}, [dequeueing] = {} }
local reply, mended = {}, {}
seek(pending, ARGV[1])
seek(dequeueing, ARGV[2])

-- Take ids out of a list, given where they stand. From its middle nothing can be removed without looking at all that
-- is before it: there the place is taken by an id that was added last.
local function cut(list, places)
  if #places == 0 then
    return
  end
  table.sort(places)
  local hole = 'torrelque:hole:' .. stamp(now)
  local from_right = lengths[list] - places[1]
  if places[#places] < NEAR or from_right < NEAR then
    for _, place in ipairs(places) do
      redis.call('LSET', list, place, hole)
    end
    redis.call('LREM', list, places[#places] < NEAR and #places or -#places, hole)
    return
  end
  local unwanted, latest = {}, {}
  for _, place in ipairs(places) do
    unwanted[place] = true
  end
  for n, id in ipairs(redis.call('LPOP', list, #places)) do
    if not unwanted[n - 1] then
      latest[#latest + 1] = id
    end
  end
  for _, place in ipairs(places) do
    if place >= #places then
      redis.call('LSET', list, place - #places, table.remove(latest))
    end
  end
end

-- Leave the task in one place only, or in none. Places ascend; were one named twice, it would be one place still.
local function leave(found, place)
  for name, list in pairs({ pending = pending, dequeueing = dequeueing }) do
    local at = found.at[list]
    local kept = place == name and at[#at]
    for n, index in ipairs(at) do
      if index ~= kept and index ~= at[n - 1] then
        table.insert(cuts[list], index)
      end
    end
  end
  if place ~= 'working' then
    redis.call('ZREM', working, found.id)
  end
  if place ~= 'delayed' then
    redis.call('ZREM', delayed, found.id)
  end
end

-- Write what is missing or nothing in a state.
local function complete(found, status)
  local id = found.id
  if found.status ~= status then
    write(id, 'status', status)
  end
  if not is_lease(found.timeout) then
    write(id, 'timeout', default)
  end
  if not is_time(found.enqueue_time) then
    write(id, 'enqueue_time', stamp(now))
  end
  for _, field in ipairs({ 'dequeue_count', 'requeue_count' }) do
    if found[field] and not is_count(found[field]) then
      write(id, field, whole(found[field]))
    end
  end
  for _, field in ipairs({ 'last_dequeue_time', 'last_requeue_time' }) do
    if found[field] and not is_time(found[field]) then
      redis.call('HDEL', task .. ':' .. id, field)
    end
  end
end

-- What never ends gets a length, what ended before all time ends now.
local function rebase(set, found, length)
  local ended = tonumber(found[set == working and 'working' or 'delayed']) == -math.huge
  redis.call('ZREM', set, found.id)
  redis.call('ZADD', set, stamp(ended and now or now + length), found.id)
end

local function mend(found, words)
  local key = task .. ':' .. found.id
  if found.final then
    if words.leftover then
      redis.call('HDEL', tasks, found.id)
    end
    if words.expiry then
      redis.call('PEXPIRE', key, keep)
    end
  elseif words.ghost or words.leftover then
    redis.call('DEL', key)
  elseif words.orphan then
    put_back(found.id, {})
    found.status, found.requeue_count = '0', nil
    complete(found, '0')
    redis.call('PERSIST', key)
  else
    local place = home(found)
    complete(found, STATUS[place])
    if words.expiry then
      redis.call('PERSIST', key)
    end
    if words.score and place == 'working' then
      rebase(working, found, lease(found.timeout, default))
    elseif words.score and place == 'delayed' then
      rebase(delayed, found, 0)
    end
  end
end

redis.call('ZREM', working, 'torrelque:hole')
for i = 5, #ARGV, 3 do
  if effort > 2 * NEAR then
    break
  end
  local found, words = examine(ARGV[i], ARGV[i + 1], ARGV[i + 2])
  reply[#reply + 1] = spell(words)
  if next(words) then
    mended[#mended + 1] = { found, words }
    if words.ghost or words.leftover then
      leave(found, nil)
    elseif words.twice then
      leave(found, home(found))
    end
  end
end
-- The places in the lists hold until something is added to them.
for list, places in pairs(cuts) do
  cut(list, places)
end
for _, each in ipairs(mended) do
  mend(each[1], each[2])
end
return { #cuts[pending], #cuts[dequeueing], reply }
