-- Add to the fleet's totals.
--
-- KEYS  1 totals
-- ARGV  then pairs: field, amount
-- Returns nothing. Not idempotent: a re-sent call counts twice, which numbers to steer by can bear.
-- O(fields). allow-oom: the fields are few.
for i = 1, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
