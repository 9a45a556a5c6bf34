-- Take or renew a client name: one live client a name.
--
-- KEYS  1 client leases
-- ARGV  1 client · 2 token · 3 ttl_ms
-- Returns 1 when the name is mine until now + ttl, 0 when another live client holds it.
-- O(1). allow-oom: replies must be readable when memory is short.
local held = redis.call('HGET', KEYS[1], ARGV[1])
local now = now_ms()
if held then
  local token, deadline = string.match(held, '^(.*)/(%d+)$')
  if token ~= ARGV[2] and tonumber(deadline) >= now then return 0 end
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. '/' .. string.format('%.0f', now + tonumber(ARGV[3])))
return 1
