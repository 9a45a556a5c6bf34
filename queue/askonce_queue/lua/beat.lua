-- Say that a worker is alive, and how long that holds.
--
-- KEYS  1 heartbeats
-- ARGV  1 consumer · 2 ttl_ms
-- Returns nothing. O(1). allow-oom. The deadline stands in the value, not in a TTL: the server
-- would evict a key with a TTL when answers fill its memory.
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f', now_ms() + tonumber(ARGV[2])))
