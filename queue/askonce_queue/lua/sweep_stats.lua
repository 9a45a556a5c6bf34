-- Fold the totals of tasks into one when there are too many: tasks come and go, their names stay.
--
-- KEYS  1 totals
-- ARGV  1 cursor · 2 count · 3 most fields kept · 4 the task that takes the others' totals
-- Returns {next cursor, fields folded}. Sums over all tasks, and over all tenants (`@…`), stay as they
-- are; one that is alive begins again from 0. O(count). allow-oom.
local excess = redis.call('HLEN', KEYS[1]) - tonumber(ARGV[3])
if excess <= 0 then return {'0', 0} end
local folded = 0
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
for i = 1, #page[2], 2 do
  local task, name = string.match(page[2][i], '^([^|]*)|(.*)$')
  local into = (string.sub(page[2][i], 1, 1) == '@' and '@' or '') .. ARGV[4]
  if folded < excess and task ~= '*' and task ~= into then
    if redis.call('HDEL', KEYS[1], page[2][i]) == 1 then  -- HSCAN may name a field twice
      folded = folded + 1
      if name then redis.pcall('HINCRBY', KEYS[1], into .. '|' .. name, page[2][i + 1]) end
    end
  end
end
return {page[1], folded}
