-- Hand deliveries that I have not started to `returned`, from which any worker takes them.
--
-- KEYS  1 jobs stream
-- ARGV  1 consumer group · 2 me · 3 the name of the `returned` consumer · 4… entry ids
-- Returns how many were mine to hand over. O(entries). allow-oom.
local count = 0
for i = 4, #ARGV do
  local delivery = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  if delivery and delivery[2] == ARGV[2] then
    redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[3], 0, ARGV[i], 'JUSTID')
    count = count + 1
  end
end
return count
