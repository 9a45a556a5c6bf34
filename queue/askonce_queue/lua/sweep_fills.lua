-- Drop leases or tries whose deadline is long past, a few at a time.
--
-- KEYS  1 a hash of leases or of tries
-- ARGV  1 cursor · 2 count · 3 where the deadline stands (its struct format) · 4 grace_ms
-- Returns {next cursor, dropped}. What is too short to have a deadline goes at once: nobody can
-- read it. O(count). allow-oom.
local now, dropped = now_ms(), 0
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
for i = 1, #page[2], 2 do
  local over = true
  if #page[2][i + 1] >= struct.size(ARGV[3]) then
    local _, _, deadline = struct.unpack(ARGV[3], page[2][i + 1])
    over = deadline + tonumber(ARGV[4]) < now
  end
  if over then dropped = dropped + redis.call('HDEL', KEYS[1], page[2][i]) end
end
return {page[1], dropped}
