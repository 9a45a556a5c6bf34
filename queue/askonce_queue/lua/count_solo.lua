-- Note that a suspect delivery is about to be tried alone.
--
-- KEYS  1 solo tries
-- ARGV  1 stream entry (lane/id) · 2 token of this try
-- Returns how often it was tried alone before this try; a re-sent call counts nothing twice.
-- O(1). allow-oom.
local count, token = string.match(redis.call('HGET', KEYS[1], ARGV[1]) or '0/', '^(%d+)/(.*)$')
if token == ARGV[2] then return tonumber(count) - 1 end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d/%s', count + 1, ARGV[2]))
return tonumber(count)
