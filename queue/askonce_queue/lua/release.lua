-- Give leases back without an answer, and remember why for a while.
--
-- KEYS  1 leases · 2 tries
-- ARGV  per lease: digest · token · kind · remember_ms · error (JSON)
--       kind: '' nothing to remember · R rejected · U uncacheable · A it was asked, and no
--       attempt counts (for remember_ms)
-- Returns one letter a lease: o it was mine · x fenced (then nothing is remembered).
-- O(leases). allow-oom.
local now, letters = now_ms(), {}
for i = 1, #ARGV, 5 do
  local digest = ARGV[i]
  local lease = redis.call('HGET', KEYS[1], digest)
  if lease and string.sub(lease, 1, 16) == ARGV[i + 1] then
    redis.call('HDEL', KEYS[1], digest)
    if ARGV[i + 2] ~= '' then
      redis.call('HSET', KEYS[2], digest,
        struct.pack('<c1Bd', ARGV[i + 2], 0, now + tonumber(ARGV[i + 3])) .. ARGV[i + 4])
    end
    letters[#letters + 1] = 'o'
  else
    letters[#letters + 1] = 'x'
  end
end
return table.concat(letters)
