-- Say that a worker is alive, and how long that holds.
--
-- KEYS  1 heartbeats
-- ARGV  1 consumer · 2 ttl_ms
-- Returns the server's time, ms. O(1). allow-oom. The deadline stands in the value, not in a TTL: the server
-- would evict a key with a TTL when answers fill its memory.
local now = now_ms()
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now + tonumber(ARGV[2])))
return now
