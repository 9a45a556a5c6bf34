-- Record the number of shards in a new store.
--
-- KEYS  1 the meta hash
-- ARGV  1 the caller's number of shards
-- Returns the recorded number. O(1). allow-oom: a worker must be able to restart without memory.
redis.call('HSETNX', KEYS[1], 'shards', ARGV[1])
return redis.call('HGET', KEYS[1], 'shards')
