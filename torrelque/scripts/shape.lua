-- shape: the types and sizes of the structures of a queue.
-- RETURNS for each of pending, dequeueing, undequeued, working, delayed, tasks, dead and its payloads the type ('none'
--         where it is not there); then the sizes of pending, dequeueing, working, delayed, tasks, 0 where the type is a
--         wrong one, and how many keys the database has
local reply = {}
for i, key in ipairs({ pending, dequeueing, undequeued, working, delayed, tasks, KEYS[8], KEYS[9] }) do
  reply[i] = redis.call('TYPE', key).ok
end
for _, count in ipairs({
  redis.pcall('LLEN', pending), redis.pcall('LLEN', dequeueing), redis.pcall('ZCARD', working),
  redis.pcall('ZCARD', delayed), redis.pcall('HLEN', tasks), redis.call('DBSIZE'),
}) do
  reply[#reply + 1] = type(count) == 'number' and count or 0
end
return reply
