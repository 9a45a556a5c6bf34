-- What was invalidated since a worker last looked.
--
-- KEYS  1 stamps · 2 last invalidation of tags
-- ARGV  1 the inv already seen · 2 most tags to return
-- Returns {inv, base, tag, stamp, tag, stamp …}; keys and globs stand as in `invalidate.lua`. When
-- something changed, all globs are told; when more tags changed than fit, base is inv: the reader
-- then drops everything older. A new shard, or one that was lost, gets its stamps here: all that a
-- worker still remembers of it is older. O(log tags + changed + globs). allow-oom.
local stamp = redis.call('HMGET', KEYS[1], 'inv', 'base')
if not stamp[1] then
  local now = string.format('%.0f', now_us())
  redis.call('HSET', KEYS[1], 'inv', now, 'base', now)
  stamp = {now, now}
end
local result = {stamp[1], stamp[2]}
if tonumber(stamp[1]) > tonumber(ARGV[1]) then
  local most = tonumber(ARGV[2])
  local changed = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. ARGV[1], '+inf', 'WITHSCORES',
    'LIMIT', 0, most + 1)
  if #changed > 2 * most then
    result[2] = stamp[1]
  else
    for i = 1, #changed, 2 do
      result[#result + 1] = changed[i]
      result[#result + 1] = string.format('%.0f', tonumber(changed[i + 1]))
    end
    local fields = redis.call('HGETALL', KEYS[1])
    for i = 1, #fields, 2 do
      if string.byte(fields[i]) == 1 then
        result[#result + 1] = fields[i]
        result[#result + 1] = fields[i + 1]
      end
    end
  end
end
return result
