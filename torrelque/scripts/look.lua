-- look: judge ids that seemed wrong before, and say what their states are.
-- ARGV    1 indexes in pending to look from   2 the same in dequeueing; then for each task: id, the words that it is
--         judged by, what its state was before a walk that has not met it ('' = no such walk)
-- RETURNS for each task the words that are confirmed, and what its state is; of the first ones only where the rest is
--         too much for one script
local reply = {}
seek(pending, ARGV[1])
seek(dequeueing, ARGV[2])
for i = 3, #ARGV, 3 do
  if effort > 2 * NEAR then
    break
  end
  local found, words = examine(ARGV[i], ARGV[i + 1], ARGV[i + 2])
  reply[#reply + 1] = spell(words)
  reply[#reply + 1] = fingerprint(found)
end
return reply
