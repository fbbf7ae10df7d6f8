-- dead: the names of what holds dead letters; a key of a foreign type stops a script here, before it writes anything.
-- KEYS    8 dead (ZSET id -> time of death)   9 payloads of the dead (HASH id -> payload); both or none
local dead, dead_payloads = KEYS[8], KEYS[9]
if dead then
  redis.call('ZCARD', dead)
  redis.call('HLEN', dead_payloads)
end

-- RETURNS when the newest letter died, 0 when there is none
local function newest()
  return tonumber(redis.call('ZRANGE', dead, -1, -1, 'WITHSCORES')[2]) or 0
end
