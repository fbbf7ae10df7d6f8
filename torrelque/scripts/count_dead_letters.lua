-- count_dead_letters: count the dead letters of a queue.
-- RETURNS how many there are
return redis.call('ZCARD', dead)
