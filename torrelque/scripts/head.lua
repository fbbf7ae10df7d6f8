-- head: the names and small tools that every script begins with.
-- KEYS    1 pending (LIST)   2 dequeueing (LIST)   3 undequeued (SET)   4 working (ZSET id -> end of lease)
--         5 delayed (ZSET id -> due time)   6 tasks (HASH id -> payload)   7 task (prefix of the states, HASHes)
-- The prefix is never a key. So while a slot of a cluster moves key by key, one key of each script is missing on either
-- side, and it is refused before it begins (TRYAGAIN): the states, which are not declared, may be on the other side.
local pending, dequeueing, undequeued, working, delayed, tasks, task = unpack(KEYS)
local clock = redis.call('TIME')
local now = clock[1] + clock[2] / 1000000

local function stamp(time)
  return string.format('%.6f', time)
end

-- A state key of a foreign type reads as no state, and is replaced when the state is written: one damaged
-- task must not stop its neighbours.
local function read(id, ...)
  local values = redis.pcall('HMGET', task .. ':' .. id, ...)
  return values.err and {} or values
end

local function write(id, ...)
  local key = task .. ':' .. id
  if type(redis.pcall('HSET', key, ...)) == 'table' then
    redis.call('DEL', key)
    redis.call('HSET', key, ...)
  end
end

-- What others stored as a count may be no whole number, and an answer with such a one could not be read.
local function whole(stored)
  local number = tonumber(stored)
  return number and number >= 0 and number < 1e9 and math.floor(number) or 0
end

-- What others stored as a lease may be no number, NaN or infinite: then the default counts.
local function lease(stored, default)
  local seconds = tonumber(stored)
  if seconds and seconds > 0 and seconds < 1e10 then
    return seconds
  end
  return tonumber(default)
end

-- Has the task ended? Its id may stand in the queue all the same, where others put it.
local function is_final(status)
  return status == '3' or status == '4'
end
