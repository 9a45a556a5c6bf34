-- Note that a suspect delivery is about to be tried alone.
--
-- KEYS  1 solo tries
-- ARGV  1 stream entry (lane/id)
-- Returns how often it was tried alone before. O(1). allow-oom.
return redis.call('HINCRBY', KEYS[1], ARGV[1], 1) - 1
