-- Drop the oldest invalidations of tags, keys and globs: those that can touch no answer any more,
-- because they are older than the longest TTL, and those beyond the bound.
--
-- KEYS  1 stamps · 2 last invalidation of tags
-- ARGV  1 count · 2 most tags kept · 3 most globs kept
-- Returns {0, dropped}. O(log tags + count + globs). allow-oom. `base` rises to the latest invalidation
-- that is dropped, so whatever it still touches (a very long flight, or all that is beyond the
-- bound) stays invalid, and some more with it.
local max_ttl = tonumber(redis.call('HGET', KEYS[1], 'max_ttl_ms') or 0)
local oldest = string.format('%.0f', now_us() - (max_ttl + 3600000) * 1000)
local globs = drop_globs(KEYS[1], tonumber(ARGV[3]), tonumber(oldest))
local excess = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[2])
local drop = math.max(excess, redis.call('ZCOUNT', KEYS[2], '-inf', oldest))
drop = math.min(drop, tonumber(ARGV[1]))
if drop <= 0 then return {0, globs} end
local stamp = redis.call('ZRANGE', KEYS[2], drop - 1, drop - 1, 'WITHSCORES')[2]
local base = tonumber(redis.call('HGET', KEYS[1], 'base') or 0)
if tonumber(stamp) > base then
  redis.call('HSET', KEYS[1], 'base', string.format('%.0f', tonumber(stamp)))
end
return {0, globs + redis.call('ZREMRANGEBYRANK', KEYS[2], 0, drop - 1)}
