-- Remove consumers that hold nothing, with their heartbeats. XGROUP DELCONSUMER alone would drop
-- what a consumer still holds.
--
-- KEYS  1 heartbeats · 2… the job streams of one shard
-- ARGV  1 consumer group · 2 '1': only those whose heartbeat is over (a sweep) · 3… consumers
-- Returns how many are gone from every stream; who still holds something, or is alive, stays.
-- O(consumers × streams). allow-oom.
local now, gone = now_ms(), 0

local function clear(stream, consumer)
  if redis.call('EXISTS', stream) == 0 then return true, false end
  local pending = redis.pcall('XPENDING', stream, ARGV[1], '-', '+', 1, consumer)
  if pending.err then return true, false end  -- no such group: nothing is held
  if #pending > 0 then return false, false end
  return true, true
end

for i = 3, #ARGV do
  local deadline = redis.call('HGET', KEYS[1], ARGV[i])
  if not (ARGV[2] == '1' and deadline and tonumber(deadline) >= now) then
    local all = true
    for k = 2, #KEYS do
      local free, known = clear(KEYS[k], ARGV[i])
      if known then redis.call('XGROUP', 'DELCONSUMER', KEYS[k], ARGV[1], ARGV[i]) end
      all = all and free
    end
    if all then
      redis.call('HDEL', KEYS[1], ARGV[i])
      gone = gone + 1
    end
  end
end
return gone
