-- Take a live leader's lease, because a waiter ran out of patience: compare-and-set.
--
-- KEYS  1 stamps · 2 leases
-- ARGV  1 my token (16 bytes) · 2 lease ttl_ms · then pairs: digest, the token seen as busy
-- Returns per pair {built, attempt} when it is mine now, or 0 when the lease has moved on.
-- The old leader is fenced by it: its token is gone. O(pairs). allow-oom.
local inv = tonumber(redis.call('HGET', KEYS[1], 'inv') or 0)
local deadline, results = now_ms() + tonumber(ARGV[2]), {}
for i = 3, #ARGV, 2 do
  local lease = redis.call('HGET', KEYS[2], ARGV[i])
  local result = 0
  if lease and inv > 0 then
    local holder, _, built, attempt = struct.unpack('<c16ddB', lease)
    if holder == ARGV[i + 1] or holder == ARGV[1] then
      if holder ~= ARGV[1] then
        built, attempt = inv, math.min(attempt + 1, 255)
        redis.call('HSET', KEYS[2], ARGV[i],
          struct.pack('<c16ddB', ARGV[1], deadline, built, attempt))
      end
      result = {string.format('%.0f', built), attempt}
    end
  end
  results[#results + 1] = result
end
return results
