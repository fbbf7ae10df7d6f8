-- dead_letters: read dead letters, in the order of their deaths.
-- ARGV    1 bound on the letters   2 bound on the bytes of their payloads and results, but always one letter
--         3 go on behind the letter that died at this time ('' = begin with the oldest)   4 and has this id
-- RETURNS for each letter: id, time of death, payload, result, dequeue_count, requeue_count, enqueue_time,
--         last_dequeue_time, last_requeue_time; nil where there is none
local most, room, time, last = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4]
local first = 0
if time ~= '' then
  -- When the letter is gone, or has died again, those that died in the same moment are read a second time.
  if tonumber(redis.call('ZSCORE', dead, last) or '') == tonumber(time) then
    first = redis.call('ZRANK', dead, last) + 1
  else
    first = redis.call('ZCOUNT', dead, '-inf', '(' .. time)
  end
end
local reply = {}
local ids = redis.call('ZRANGE', dead, first, first + most - 1, 'WITHSCORES')
for i = 1, #ids, 2 do
  local id = ids[i]
  local payload = redis.call('HGET', dead_payloads, id)
  local state = read(
    id, 'result', 'dequeue_count', 'requeue_count', 'enqueue_time', 'last_dequeue_time', 'last_requeue_time'
  )
  room = room - (payload and #payload or 0) - (state[1] and #state[1] or 0)
  if room < 0 and i > 1 then
    return reply
  end
  local letter = { id, stamp(tonumber(ids[i + 1])), payload }
  for n = 1, 6 do
    letter[n + 3] = state[n] or false
  end
  reply[#reply + 1] = letter
end
return reply
