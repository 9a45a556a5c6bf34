-- Make answers that were built before now invalid on one shard, by tag or altogether.
--
-- KEYS  1 stamps · 2 last invalidation of tags
-- ARGV  1 '1' for everything, else '0' · 2… tags
-- Returns the new inv. Repeating it is harmless. O(tags). allow-oom.
local inv = math.max(tonumber(redis.call('HGET', KEYS[1], 'inv') or 0) + 1, now_us())
local text = string.format('%.0f', inv)
redis.call('HSET', KEYS[1], 'inv', text)
if ARGV[1] == '1' or redis.call('HEXISTS', KEYS[1], 'base') == 0 then
  redis.call('HSET', KEYS[1], 'base', text)
end
for i = 2, #ARGV do redis.call('ZADD', KEYS[2], text, ARGV[i]) end
return text
