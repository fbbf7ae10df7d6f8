-- walk: look at a stretch of pending or dequeueing, and at each id that stands there.
-- A walk goes from the left, where ids are added and from where none is taken: what stands in the list all the while is
-- met, however many come and go.
-- ARGV    1 list, 'pending' or 'dequeueing'   2 index to begin at   3 how many   4 what to do with the ids, 'judge' or
--         'list'
-- RETURNS the ids; for each that something is wrong with, the id and words that say what
local list = ARGV[1] == 'pending' and pending or dequeueing
local ids = redis.call('LRANGE', list, ARGV[2], ARGV[2] + ARGV[3] - 1)
local wrong = {}
if ARGV[4] == 'judge' then
  for _, id in ipairs(ids) do
    local words = judge(facts(id, list == pending and 1 or 0, list == pending and 0 or 1))
    if next(words) then
      wrong[#wrong + 1] = id
      wrong[#wrong + 1] = spell(words)
    end
  end
end
return { ids, wrong }
