-- Drop what is listed by the time at which it may go, and is over: buckets of counts, quotas.
--
-- KEYS  1 names, by the time at which they may go
-- ARGV  1 count · 2 the key of what has a name, up to the name
-- Returns {0, dropped}. O(log names + count). allow-oom.
local over = string.format('%.0f', now_ms())
local names = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', over, 'LIMIT', 0, ARGV[1])
for _, name in ipairs(names) do
  redis.call('UNLINK', ARGV[2] .. name)
  redis.call('ZREM', KEYS[1], name)
end
return {0, #names}
