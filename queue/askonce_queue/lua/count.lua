-- Add to the fleet's totals, and to the buckets of time from which rolling windows are read.
--
-- KEYS  1 totals
-- ARGV  1 when it happened (server ms; 0: now) · 2 the key with the names of buckets, by the time at
--       which they may go · 3 a bucket's key up to its name · 4 most fields of a bucket
--       5 the task that takes the counts of those that do not fit
--       6 sizes of buckets: "ms:ms kept" of each, with blanks between
--       then pairs: field, amount
-- Returns nothing. Not idempotent: a re-sent call counts twice, which numbers to steer by can bear.
-- O(fields). allow-oom: fields and buckets are few. A bucket that cannot be written (its slot is
-- being moved, say) is left out, or the totals would be counted again with the next try.
local now = now_ms()
local at = tonumber(ARGV[1])
if at <= 0 or at > now then at = now end

-- Small hashes are lists to the server, in which 500 fields take 16 ms to be found (measured). A name
-- too long for a list makes it a table; no counter is called so.
local function fields_of(key)
  local fields = redis.call('HLEN', key)
  if fields > 100 and fields < 1000 then redis.call('HINCRBY', key, string.rep('table ', 12), 0) end
  return fields
end

fields_of(KEYS[1])
for i = 7, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end

local function add_to(bucket)
  local room = tonumber(ARGV[4]) - fields_of(bucket)
  local crowded = room < (#ARGV - 6) / 2
  for i = 7, #ARGV, 2 do
    local field = ARGV[i]
    if crowded and redis.call('HEXISTS', bucket, field) == 0 then
      local first, rest = string.match(field, '^([^|]?)[^|]*(|.*)$')
      if room <= 0 and rest and first ~= '*' then
        field = (first == '@' and '@' or '') .. ARGV[5] .. rest
      end
      room = room - 1
    end
    redis.call('HINCRBY', bucket, field, ARGV[i + 1])
  end
end

for size, kept in string.gmatch(ARGV[6], '(%d+):(%d+)') do
  local number = math.floor(at / size)
  local over = (number + 1) * size + kept
  if over > now then  -- else it is gone, and stays gone
    local name = string.format('%.0f:%.0f', size / 1000, number)
    pcall(function()
      redis.call('ZADD', ARGV[2], string.format('%.0f', over), name)  -- first: or no sweep finds it
      add_to(ARGV[3] .. name)
    end)
  end
end
