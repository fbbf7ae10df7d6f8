-- stats: count the tasks of a queue.
-- RETURNS all live tasks, pending, working, delayed
return {
  redis.call('HLEN', tasks),
  redis.call('LLEN', pending),
  redis.call('ZCARD', working),
  redis.call('ZCARD', delayed),
}
