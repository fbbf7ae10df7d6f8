-- release: take working tasks out of the queue, keeping the result for a while when there is one.
-- ARGV    1 status   2 milliseconds to keep a result ('' = the tasks become dead letters)
--         then for each task: id, delivery number ('' = any), result ('' = none, else it stands after a '=')
-- RETURNS for each task, as text with spaces between: 1 released | 0 no such task | -1 not working
--         | -2 a later delivery holds it
-- ATOMIC  each task by itself: leave working, drop the payload, keep or drop the state, or become a dead letter; or
--         nothing
local status, keep = ARGV[1], ARGV[2]
local reply, ids = {}, {}
for i = 3, #ARGV, 3 do
  ids[#ids + 1] = ARGV[i]
end
redis.call('HLEN', tasks)
local held = redis.call('ZMSCORE', working, unpack(ids))

-- What is said of an id decides about its second release in the same run.
local ended, after = {}, {}
for n, id in ipairs(ids) do
  local said = after[id] or verdict(id, ARGV[3 * n + 1], held[n])
  if said == 1 then
    ended[#ended + 1] = id
    after[id] = ARGV[3 * n + 2] == '' and keep ~= '' and 0 or -1
  end
  reply[n] = said
end

if #ended > 0 then
  redis.call('ZREM', working, unpack(ended))
  if keep ~= '' then
    redis.call('HDEL', tasks, unpack(ended))
  end
end
local gone = {}
for n, id in ipairs(ids) do
  local result = ARGV[3 * n + 2]
  local payload = reply[n] == 1 and keep == '' and redis.call('HGET', tasks, id)
  if payload then
    bury(id, payload, result ~= '' and string.sub(result, 2))
  elseif reply[n] == 1 and keep ~= '' and result ~= '' then
    write(id, 'status', status, 'result', string.sub(result, 2), 'release_time', stamp(now))
    redis.call('PEXPIRE', task .. ':' .. id, keep)
  elseif reply[n] == 1 then
    gone[#gone + 1] = task .. ':' .. id
  end
end
if #gone > 0 then
  redis.call('DEL', unpack(gone))
end
return table.concat(reply, ' ')
