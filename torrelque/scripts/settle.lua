-- settle: may the caller change this task? Read by release, requeue and extend before they write anything.
-- `held` is the end of its lease, if it has one: a caller with many ids reads them with one command.
-- RETURNS 1 yes | 0 no such task | -1 known, but not working | -2 a later delivery holds it
local function verdict(id, token, held)
  local known = read(id, 'dequeue_count', 'status')
  if held then
    if token == '' or tonumber(token) == whole(known[1]) then
      return 1
    end
    return -2
  end
  if known[2] or redis.call('HEXISTS', tasks, id) == 1 then
    return -1
  end
  return 0
end
