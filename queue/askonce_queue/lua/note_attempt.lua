-- Count one more attempt at a question, in its lease and in the record that outlives the lease.
--
-- KEYS  1 leases · 2 tries
-- ARGV  1 digest · 2 token · 3 the attempt that failed · 4 remember_ms
-- Returns the number of the attempt that may now begin, 0 when the lease is not mine.
-- O(1). allow-oom.
local lease = redis.call('HGET', KEYS[1], ARGV[1])
if not lease or string.sub(lease, 1, 16) ~= ARGV[2] then return 0 end
local token, deadline, built, attempt = struct.unpack('<c16ddB', lease)
if attempt > tonumber(ARGV[3]) then return attempt end  -- a re-sent call: it is counted
attempt = tonumber(ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1],
  struct.pack('<c1Bd', 'A', math.min(attempt, 255), now_ms() + tonumber(ARGV[4])))
attempt = math.min(attempt + 1, 255)
redis.call('HSET', KEYS[1], ARGV[1],
  struct.pack('<c16ddB', token, deadline, built, attempt))
return attempt
