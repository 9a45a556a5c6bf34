-- Drop hits that were kept for long enough.
--
-- KEYS  1 hits
-- ARGV  1 how long they are kept, in ms
-- Returns {0, dropped}. O(dropped), of few thousands. allow-oom.
local oldest = string.format('%.0f', math.max(0, now_ms() - tonumber(ARGV[1])))
return {0, redis.call('XTRIM', KEYS[1], 'MINID', oldest)}
