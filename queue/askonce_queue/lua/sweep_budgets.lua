-- Drop what was spent on days before yesterday.
--
-- KEYS  1 budgets
-- ARGV  1 cursor · 2 count
-- Returns {next cursor, dropped}. O(count). allow-oom.
local yesterday = math.floor(now_ms() / 86400000) - 1
local dropped = 0
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
for i = 1, #page[2], 2 do
  local day = tonumber(string.match(page[2][i], '^%d+'))
  if not day or day < yesterday then dropped = dropped + redis.call('HDEL', KEYS[1], page[2][i]) end
end
return {page[1], dropped}
