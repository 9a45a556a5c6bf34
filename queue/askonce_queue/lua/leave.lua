-- Remove a consumer that holds nothing, with its heartbeat. XGROUP DELCONSUMER alone would drop
-- what the consumer still holds.
--
-- KEYS  1 heartbeats · 2… the job streams of one shard
-- ARGV  1 consumer group · 2 consumer · 3 '1': only if its heartbeat is over (a sweep)
-- Returns 1 when it is gone from every stream, 0 when it still holds something or is alive.
-- O(streams). allow-oom.
local deadline = redis.call('HGET', KEYS[1], ARGV[2])
if ARGV[3] == '1' and deadline and tonumber(deadline) >= now_ms() then return 0 end
local clear = 1
for k = 2, #KEYS do
  if redis.call('EXISTS', KEYS[k]) == 1 then
    local pending = redis.pcall('XPENDING', KEYS[k], ARGV[1], '-', '+', 1, ARGV[2])
    if pending.err then
      pending = {}  -- no such group: nothing is held
    end
    if #pending > 0 then
      clear = 0
    else
      redis.pcall('XGROUP', 'DELCONSUMER', KEYS[k], ARGV[1], ARGV[2])
    end
  end
end
if clear == 1 then redis.call('HDEL', KEYS[1], ARGV[2]) end
return clear
