-- scan: look at some ids of working, delayed, tasks, or of all that have a state.
-- ARGV    1 what, as above or 'states'   2 cursor   3 about how many
-- A state's key may be one of another queue, whose name goes on with ':task': then its id has a colon or is the name of
-- a structure, and is left alone.
-- RETURNS the next cursor, '0' = done; how many were looked at; how many to ask for the next time; for each that
--         something is wrong with, the id and words that say what; ids of 'tasks' that are neither working nor delayed
local wrong, loose = {}, {}
local looked, enough = 0, tonumber(ARGV[3])
-- Payloads come along where the server is too old to leave them out: not more of them than this, in bytes.
local MOST = 1048576
local STRUCTURES = { pending = 1, dequeueing = 1, undequeued = 1, working = 1, delayed = 1, tasks = 1 }

local function note(id)
  local words = judge(facts(id, 0, 0))
  if next(words) then
    wrong[#wrong + 1] = id
    wrong[#wrong + 1] = spell(words)
  end
end

local page
if ARGV[1] == 'tasks' then
  page = redis.pcall('HSCAN', tasks, ARGV[2], 'COUNT', ARGV[3], 'NOVALUES')
  local step = 1
  if page.err then
    step = 2
    page = redis.call('HSCAN', tasks, ARGV[2], 'COUNT', ARGV[3])
  end
  local bytes = 0
  for i = 1, #page[2], step do
    local id = page[2][i]
    looked = looked + 1
    bytes = bytes + (step == 2 and #page[2][i + 1] or 0)
    if not redis.call('ZSCORE', working, id) and not redis.call('ZSCORE', delayed, id) then
      loose[#loose + 1] = id
    end
  end
  enough = bytes > MOST and math.max(1, math.floor(enough * MOST / bytes)) or math.min(enough * 2, 200)
elseif ARGV[1] == 'states' then
  page = redis.call('SCAN', ARGV[2], 'MATCH', task .. ':*', 'COUNT', ARGV[3])
  for _, key in ipairs(page[2]) do
    local id = string.sub(key, #task + 2)
    looked = looked + 1
    if not STRUCTURES[id] and not string.find(id, ':', 1, true) and redis.call('HEXISTS', tasks, id) == 0 then
      note(id)
    end
  end
else
  local set = ARGV[1] == 'working' and working or delayed
  page = redis.call('ZSCAN', set, ARGV[2], 'COUNT', ARGV[3])
  for i = 1, #page[2], 2 do
    looked = looked + 1
    note(page[2][i])
  end
end
return { page[1], looked, enough, wrong, loose }
