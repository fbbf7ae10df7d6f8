-- enqueue: add tasks to the queue, at once or after a delay; an id that is known already changes nothing.
-- ARGV    1 wake channel   2 horizon, seconds; then for each task: id, payload, lease seconds, delay seconds
-- RETURNS for each task, as text with spaces between: 1 added | 0 known already
-- ATOMIC  all of the tasks, or none when Redis refuses to store the first
local soonest = nil
local reply, states, ready = {}, {}, {}
redis.call('LLEN', pending)
redis.call('ZCARD', delayed)
for i = 3, #ARGV, 4 do
  states[#states + 1] = task .. ':' .. ARGV[i]
end
-- As a rule no id is known, and one command tells.
local none_kept = redis.call('EXISTS', unpack(states)) == 0
for n, state in ipairs(states) do
  local at = 4 * n - 1
  local id, delay = ARGV[at], tonumber(ARGV[at + 3])
  local is_new = none_kept or redis.call('EXISTS', state) == 0
  reply[n] = is_new and redis.call('HSETNX', tasks, id, ARGV[at + 1]) or 0
  if reply[n] == 1 then
    write(id, 'status', delay > 0 and '2' or '0', 'enqueue_time', stamp(now), 'timeout', ARGV[at + 2])
    if delay > 0 then
      local due = now + delay
      redis.call('ZADD', delayed, stamp(due), id)
      soonest = math.min(soonest or due, due)
    else
      ready[#ready + 1] = id
    end
  end
end
if #ready > 0 then
  redis.call('LPUSH', pending, unpack(ready))
end
wake(delayed, soonest, ARGV[1], ARGV[2])
return table.concat(reply, ' ')
