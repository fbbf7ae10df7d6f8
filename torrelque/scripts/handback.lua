-- handback: undo deliveries that nobody saw; the tasks return to the head of the queue as if never dequeued.
-- ARGV    for each task, the last one delivered first: id, delivery number ('' = it still stands in dequeueing)
-- RETURNS for each task, as text with spaces between: 1 handed back | 0 it is not ours any more (swept, or delivered
--         again)
-- ATOMIC  each task by itself
local reply = {}
redis.call('LLEN', pending)
for i = 1, #ARGV, 2 do
  local id, token = ARGV[i], ARGV[i + 1]
  local done = 0
  if token == '' then
    done = redis.call('LREM', dequeueing, 1, id)
  else
    local count = whole(read(id, 'dequeue_count')[1])
    if tonumber(token) == count and redis.call('ZREM', working, id) == 1 then
      done = 1
      if count > 1 then
        write(id, 'status', '0', 'dequeue_count', count - 1)
      else
        redis.call('HDEL', task .. ':' .. id, 'dequeue_count', 'last_dequeue_time')
        write(id, 'status', '0')
      end
    end
  end
  if done == 1 then
    redis.call('RPUSH', pending, id)
  end
  reply[#reply + 1] = done
end
return table.concat(reply, ' ')
