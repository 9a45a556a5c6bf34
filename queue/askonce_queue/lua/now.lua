-- Prelude of every script: the server's clock. Tests bind the scripts with a prelude of their own,
-- so that a virtual clock drives the real server.
local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
local function now_ms()
  return math.floor(now_us() / 1000)
end
