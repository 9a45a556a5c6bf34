-- Say when tags, keys and globs were invalidated last, before doing so again: what they take anew.
--
-- KEYS  1 stamps · 2 last invalidation of tags
-- ARGV  1… tags, keys and globs, as of `invalidate.lua`
-- Returns {base ('inf': nobody knows, nothing is valid), stamp of each, '0' for never}. Writes
-- nothing. O(tags). allow-oom.
local result = {redis.call('HGET', KEYS[1], 'base') or 'inf'}
for i = 1, #ARGV do
  local stamp
  if string.byte(ARGV[i]) == 1 then
    stamp = redis.call('HGET', KEYS[1], ARGV[i])
  else
    stamp = redis.call('ZSCORE', KEYS[2], ARGV[i])
  end
  result[i + 1] = string.format('%.0f', tonumber(stamp or 0) or 0)
end
return result
