-- Give a client name back. With nothing owed, its traces go too; else its replies wait for the
-- next client of that name, until the sweep.
--
-- KEYS  1 client leases · 2 owed replies · 3 reply stream
-- ARGV  1 client · 2 token
-- Returns 1 when nothing is left, 0 when replies are owed or the name is somebody else's.
-- O(1). allow-oom.
local held = redis.call('HGET', KEYS[1], ARGV[1])
if not held or string.match(held, '^(.*)/') ~= ARGV[2] then return 0 end
if tonumber(redis.call('HGET', KEYS[2], ARGV[1]) or 0) > 0 then
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. '/' .. string.format('%.0f', now_ms()))
  return 0
end
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], ARGV[1])
redis.call('DEL', KEYS[3])
return 1
