-- Renew the fill leases that a worker holds, all of one shard in one call.
--
-- KEYS  1 leases
-- ARGV  1 lease ttl_ms · then pairs: digest, token
-- Returns one letter a lease: r renewed · l lost (somebody else's, or gone).
-- O(leases). allow-oom.
local deadline, letters = now_ms() + tonumber(ARGV[1]), {}
for i = 2, #ARGV, 2 do
  local lease = redis.call('HGET', KEYS[1], ARGV[i])
  if lease and string.sub(lease, 1, 16) == ARGV[i + 1] then
    local token, _, built, attempt = struct.unpack('<c16ddB', lease)
    redis.call('HSET', KEYS[1], ARGV[i],
      struct.pack('<c16ddB', token, deadline, built, attempt))
    letters[#letters + 1] = 'r'
  else
    letters[#letters + 1] = 'l'
  end
end
return table.concat(letters)
