-- release: take working tasks out of the queue, keeping the result for a while when there is one.
-- ARGV    for each task: id, delivery number ('' = any), status, milliseconds to keep (0 = drop the state), result
-- RETURNS for each task, as text with spaces between: 1 released | 0 no such task | -1 not working | -2 a later delivery holds it
-- ATOMIC  each task by itself: leave working, drop the payload, keep or drop the state; or nothing
local reply, ids = {}, {}
for i = 1, #ARGV, 5 do
  ids[#ids + 1] = ARGV[i]
end
redis.call('HLEN', tasks)
local held = redis.call('ZMSCORE', working, unpack(ids))

-- What is said of an id decides about its second release in the same run.
local ended, after = {}, {}
for n, id in ipairs(ids) do
  local said = after[id] or verdict(id, ARGV[5 * n - 3], held[n])
  if said == 1 then
    ended[#ended + 1] = id
    after[id] = tonumber(ARGV[5 * n - 1]) > 0 and -1 or 0
  end
  reply[n] = said
end

if #ended > 0 then
  redis.call('ZREM', working, unpack(ended))
  redis.call('HDEL', tasks, unpack(ended))
end
local gone = {}
for n, id in ipairs(ids) do
  local keep = tonumber(ARGV[5 * n - 1])
  local key = task .. ':' .. id
  if reply[n] == 1 and keep > 0 then
    write(id, 'status', ARGV[5 * n - 2], 'result', ARGV[5 * n], 'release_time', stamp(now))
    redis.call('PEXPIRE', key, keep)
  elseif reply[n] == 1 then
    gone[#gone + 1] = key
  end
end
if #gone > 0 then
  redis.call('DEL', unpack(gone))
end
return table.concat(reply, ' ')
