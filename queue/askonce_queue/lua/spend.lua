-- Add to what tasks have spent on which day (UTC), and tell what was spent today.
--
-- KEYS  1 budgets
-- ARGV  1 number of tasks
--       then their names, then triples: day (of Unix time; 0: today), task, amount
-- Returns {now_ms, what each task has spent today}. Not idempotent: a re-sent call counts twice, so
-- a budget may end early and never late. O(tasks + triples). allow-oom: one field a task and day.
local now = now_ms()
local today = math.floor(now / 86400000)
local count = tonumber(ARGV[1])
for i = count + 2, #ARGV, 3 do
  local day = tonumber(ARGV[i])
  if day <= 0 or day > today then day = today end
  local field = string.format('%.0f|%s', day, ARGV[i + 1])
  -- A total that is no number begins anew: who is told of an error would tell all of this again.
  local total = redis.pcall('HINCRBY', KEYS[1], field, ARGV[i + 2])
  if type(total) == 'table' then redis.call('HSET', KEYS[1], field, ARGV[i + 2]) end
end
local fields = {}
for i = 2, count + 1 do fields[i - 1] = string.format('%.0f|%s', today, ARGV[i]) end
local results = redis.call('HMGET', KEYS[1], unpack(fields))
for i = 1, count do
  if not (results[i] and string.find(results[i], '^%d+$')) then results[i] = '0' end
end
table.insert(results, 1, string.format('%.0f', now))
return results
