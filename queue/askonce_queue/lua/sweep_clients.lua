-- Drop the names, replies and debts of clients that vanished long ago, a few at a time.
--
-- KEYS  1 client leases · 2 owed replies
-- ARGV  1 cursor · 2 count · 3 retain_ms · 4 reply stream prefix (the key without the client)
-- Returns {next cursor, dropped}. The reply streams are of the same slot; the server frees them
-- behind. O(count). allow-oom.
local now, dropped = now_ms(), 0
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
for i = 1, #page[2], 2 do
  local deadline = tonumber(string.match(page[2][i + 1], '/(%d+)$') or 0)
  if deadline + tonumber(ARGV[3]) < now then
    dropped = dropped + redis.call('HDEL', KEYS[1], page[2][i])
    redis.call('HDEL', KEYS[2], page[2][i])
    redis.call('UNLINK', ARGV[4] .. page[2][i])
  end
end
return {page[1], dropped}
