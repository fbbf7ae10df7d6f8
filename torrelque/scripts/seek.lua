-- seek: where ids stand in a list: anywhere in a short one, else from given indexes on.
-- Ids that are looked for and not found are surely not there only if the list is short, or as `is_absent` says.
local SHORT, NEAR = 500, 20000
-- So far a window reaches at least: it begins before the place where an id was met, and has to reach beyond it.
local NARROW = 50
local windows = { [pending] = {}, [dequeueing] = {} }
local lengths = { [pending] = redis.call('LLEN', pending), [dequeueing] = redis.call('LLEN', dequeueing) }
local effort = 0

-- `starts` are indexes, ascending, as text with spaces between; a window begins at each. Windows that overlap are read
-- as one, so that no place is met twice, and all of them together are no longer than two short lists: the first ones.
local function seek(list, starts)
  if lengths[list] <= SHORT then
    starts = '0'
  end
  local count = 0
  for _ in string.gmatch(starts, '%d+') do
    count = count + 1
  end
  local at, unread, left = windows[list], 0, 2 * SHORT
  local width = math.max(NARROW, math.floor(SHORT / math.max(1, count)))
  for start in string.gmatch(starts, '%d+') do
    local first = math.max(tonumber(start), unread)
    local behind = math.min(tonumber(start) + width, first + left)
    if first < behind then
      for i, id in ipairs(redis.call('LRANGE', list, first, behind - 1)) do
        at[id] = at[id] or {}
        table.insert(at[id], first + i - 1)
      end
      unread, left = behind, left - (behind - first)
    end
  end
end

-- For an id that a whole walk has not met, and whose state is still what it was before that: it can only have been put
-- back at an end since then.
local function is_absent(list, id)
  if windows[list][id] then
    return false
  elseif lengths[list] <= SHORT then
    return true
  end
  effort = effort + math.min(lengths[list], 2 * NEAR)
  return not redis.call('LPOS', list, id, 'MAXLEN', NEAR)
    and not redis.call('LPOS', list, id, 'RANK', -1, 'MAXLEN', NEAR)
end

-- Everything about a task that changes when it moves.
local function fingerprint(found)
  local values = {}
  for n, field in ipairs(FIELDS) do
    values[n] = found[field] or ''
  end
  return table.concat(values, ' ')
end

-- `before` is the fingerprint that the task had before a walk that has not met it, or '' if there was none.
-- RETURNS what `facts` returns, and the words that are asked for
local function examine(id, asked, before)
  local in_pending, in_dequeueing = windows[pending][id] or {}, windows[dequeueing][id] or {}
  local found = facts(id, #in_pending, #in_dequeueing)
  found.at = { [pending] = in_pending, [dequeueing] = in_dequeueing }
  local words = judge(found)
  if words.orphan then
    if before ~= fingerprint(found) or not is_absent(pending, id) or not is_absent(dequeueing, id) then
      words = {}
    end
  end
  local confirmed = {}
  for word in string.gmatch(spell(words, asked), '%a+') do
    confirmed[word] = true
  end
  return found, confirmed
end
