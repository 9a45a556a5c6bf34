-- Drop debts to clients that have no name, and replies to them, a few at a time.
--
-- KEYS  1 owed replies · 2 client leases
-- ARGV  1 cursor · 2 count · 3 reply stream prefix (the key without the client)
-- Returns {next cursor, dropped}. Nothing is enqueued without a name, so nobody waits for them.
-- O(count). allow-oom.
local dropped = 0
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
for i = 1, #page[2], 2 do
  if redis.call('HEXISTS', KEYS[2], page[2][i]) == 0 then
    dropped = dropped + redis.call('HDEL', KEYS[1], page[2][i])
    redis.call('UNLINK', ARGV[3] .. page[2][i])
  end
end
return {page[1], dropped}
