-- judge: what is wrong with an id, from one look at it. `judge` takes what `facts` has found.
-- RETURNS words: ghost (it stands somewhere, without a payload)   orphan (a payload that stands nowhere, not final)
--         leftover (a payload or a place of a task that is final, a state of no task)   twice (in two places, or in one
--         list twice)   status (not that of its place)   state (missing, foreign, or with fields that are nothing)
--         score (no time, or one that a clock that was wrong has made)   expiry (a live task whose state would expire,
--         a final state that never does)
local FIELDS = {
  'status', 'timeout', 'enqueue_time', 'dequeue_count', 'requeue_count', 'last_dequeue_time', 'last_requeue_time',
  'longest_lease',
}
local STATUS = { pending = '0', dequeueing = '0', working = '1', delayed = '2' }
-- No length of time is longer (ten years), and clocks may differ by so much.
local LONGEST, SKEW = 315360000, 60

local function number(text)
  return type(text) == 'string' and string.find(text, '^[%d%.eE+-]+$') and tonumber(text) or nil
end

local function is_time(text)
  local seconds = number(text)
  return seconds ~= nil and seconds >= 0 and seconds < 1e11
end

local function is_count(text)
  local count = number(text)
  return count ~= nil and count >= 0 and count < 1e9 and count % 1 == 0
end

local function is_lease(text)
  local seconds = number(text)
  return seconds ~= nil and seconds > 0 and seconds < 1e10
end

-- How often an id stands in the lists only the caller can know: to look through a long list takes too long.
local function facts(id, in_pending, in_dequeueing)
  local state = redis.pcall('HMGET', task .. ':' .. id, unpack(FIELDS))
  local found = {
    id = id, pending = in_pending, dequeueing = in_dequeueing, foreign = state.err ~= nil,
    working = redis.call('ZSCORE', working, id), delayed = redis.call('ZSCORE', delayed, id),
    body = redis.call('HEXISTS', tasks, id) == 1, ttl = redis.call('PTTL', task .. ':' .. id),
  }
  found.places = in_pending + in_dequeueing + (found.working and 1 or 0) + (found.delayed and 1 or 0)
  for n, field in ipairs(FIELDS) do
    found[field] = not found.foreign and state[n] or nil
  end
  found.final = is_final(found.status)
  return found
end

-- The place that an id keeps of several: who holds a lease goes on holding it, else what its state says.
local function home(found)
  local listed = found.pending + found.dequeueing > 0
  if found.working then
    return 'working'
  elseif found.delayed and (found.status == STATUS.delayed or not listed) then
    return 'delayed'
  end
  return found.pending > 0 and 'pending' or 'dequeueing'
end

local function is_whole(found)
  return not found.foreign and found.status ~= nil and is_lease(found.timeout) and is_time(found.enqueue_time)
    and (not found.dequeue_count or is_count(found.dequeue_count))
    and (not found.requeue_count or is_count(found.requeue_count))
    and (not found.last_dequeue_time or is_time(found.last_dequeue_time))
    and (not found.last_requeue_time or is_time(found.last_requeue_time))
end

local function is_absurd(score, furthest)
  local time = tonumber(score)
  return not time or time ~= time or time == -math.huge or time > furthest
end

-- A lease that ends later than one that began now, and than any extension asked for, began in the future.
local function is_misplaced(found)
  local own = is_lease(found.timeout) and tonumber(found.timeout) or LONGEST
  return found.delayed and is_absurd(found.delayed, now + LONGEST + SKEW)
    or found.working and is_absurd(found.working, now + math.max(own, lease(found.longest_lease, own)) + SKEW)
end

local function judge(found)
  local words = {}
  if found.final then
    words.leftover = (found.body or found.places > 0) or nil
    -- A dead letter is kept until somebody wants it no more.
    words.expiry = found.ttl == -1 and not redis.call('ZSCORE', dead, found.id) or nil
  elseif found.places == 0 then
    words.orphan = found.body or nil
    words.leftover = not found.body and found.status ~= nil or nil
  elseif not found.body then
    words.ghost = true
  else
    words.twice = found.places > 1 or nil
    words.state = not is_whole(found) or nil
    words.status = found.status ~= nil and found.status ~= STATUS[home(found)] or nil
    words.score = is_misplaced(found) or nil
    words.expiry = found.ttl >= 0 or nil
  end
  return words
end

-- RETURNS the words as text, those only that are `asked` for, if that is not nil
local function spell(words, asked)
  local text = {}
  for _, word in ipairs({ 'ghost', 'orphan', 'leftover', 'twice', 'state', 'status', 'score', 'expiry' }) do
    if words[word] and (not asked or string.find(asked, word, 1, true)) then
      text[#text + 1] = word
    end
  end
  return table.concat(text, ' ')
end
