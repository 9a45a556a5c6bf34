-- Take over deliveries whose consumer is dead, or that a draining worker has handed back.
--
-- KEYS  1 jobs stream · 2 heartbeats
-- ARGV  1 consumer group · 2 me · 3 the name of the `returned` consumer · 4 most entries to take
-- Returns a list of {entry id, fields, deliveries before this one, 1 if handed back}, empty when
-- my own heartbeat is not fresh: who cannot prove to be alive must not call others dead.
-- O(consumers + entries). allow-oom.
local now, room = now_ms(), tonumber(ARGV[4])
local function alive(consumer)
  local deadline = tonumber(redis.call('HGET', KEYS[2], consumer))  -- nil as well for no number
  return deadline and deadline >= now
end
local taken = {}
if not alive(ARGV[2]) then return taken end
local consumers = redis.call('XPENDING', KEYS[1], ARGV[1])[4] or {}
for _, consumer in ipairs(consumers) do
  local name = consumer[1]
  local returned = name == ARGV[3]
  if room > 0 and name ~= ARGV[2] and (returned or not alive(name)) then
    local pending = redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', room, name)
    for _, delivery in ipairs(pending) do
      local claim = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, delivery[1]}
      if returned then
        claim[#claim + 1] = 'RETRYCOUNT'
        claim[#claim + 1] = delivery[4]
      end
      local entry = redis.call(unpack(claim))[1]
      if entry and entry[2] then
        taken[#taken + 1] = {entry[1], entry[2], delivery[4], returned and 1 or 0}
      end
      room = room - 1
    end
  end
end
return taken
