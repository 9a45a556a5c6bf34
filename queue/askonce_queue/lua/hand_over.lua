-- Delete reply entries that a client has handed to its callers, and owe it less.
--
-- KEYS  1 reply stream · 2 owed replies
-- ARGV  1 client · then pairs: entry id, number of replies in it
-- Returns how many replies were handed over by this call; a re-sent call counts nothing twice.
-- O(entries). allow-oom: it frees memory.
local handed = 0
for i = 2, #ARGV, 2 do
  if redis.call('XDEL', KEYS[1], ARGV[i]) == 1 then handed = handed + tonumber(ARGV[i + 1]) end
end
if handed > 0 and redis.call('HINCRBY', KEYS[2], ARGV[1], -handed) <= 0 then
  redis.call('HDEL', KEYS[2], ARGV[1])
end
return handed
