-- Keep inputs from the cache from now on.
--
-- KEYS  1 rules
-- ARGV  1 most rules · 2 id · 3 the rule, as JSON
-- Returns 1, or 0 when there are as many as there may be. Repeating it is harmless. O(1). allow-oom:
-- people wait for it, and rules are few.
if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0
    and redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[1]) then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
return 1
