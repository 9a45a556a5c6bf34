-- Drop leases and tries whose deadline is long past, a few at a time.
--
-- KEYS  1 a hash of leases or of tries · 2 stamps · 3 last invalidation of tags
-- ARGV  1 cursor · 2 count · 3 where the deadline stands (its struct format) · 4 grace_ms
-- Returns {next cursor, dropped}. Tags invalidated before the longest TTL can touch no entry any
-- more and are pruned too. O(count). allow-oom.
local now, dropped = now_us() / 1000, 0
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
for i = 1, #page[2], 2 do
  local _, _, deadline = struct.unpack(ARGV[3], page[2][i + 1])
  if deadline + tonumber(ARGV[4]) < now then
    redis.call('HDEL', KEYS[1], page[2][i])
    dropped = dropped + 1
  end
end
local max_ttl = tonumber(redis.call('HGET', KEYS[2], 'max_ttl_ms') or 0)
local oldest = now - max_ttl - 3600000
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', string.format('%.0f', oldest * 1000))
return {page[1], dropped}
