-- Drop id records or solo tries whose job is no longer in its stream, a few at a time.
--
-- KEYS  1 the hash · 2… the job streams of the shard
-- ARGV  1 cursor · 2 count · 3 where `lane/entry` stands: 'value' or 'field' · 4 grace_ms
--       5… the lanes of the streams, in order
-- Returns {next cursor, dropped}. O(count). allow-oom. To find a job is to read it: after
-- MOST_BYTES of jobs the rest of the page waits until the sweep comes by again, which then begins
-- with other records.
local MOST_BYTES = 1048576
local streams, read = {}, 0
for i = 5, #ARGV do streams[ARGV[i]] = KEYS[i - 3] end

local function there(stream, id)
  local found = redis.pcall('XRANGE', stream, id, id)
  if found.err or not found[1] then return false end  -- an error: no entry can have such an id
  for _, part in ipairs(found[1][2]) do read = read + #part end
  return true
end

local now, dropped = now_ms(), 0
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local records = #page[2] / 2
for n = 0, records - 1 do
  if read > MOST_BYTES then break end
  local i = 1 + 2 * ((now + n) % records)
  local place = ARGV[3] == 'field' and page[2][i] or page[2][i + 1]
  local lane, id, since = string.match(place, '^([^/]*)/((%d+)%-%d+)$')
  local gone = not lane
  if lane and streams[lane] and tonumber(since) + tonumber(ARGV[4]) < now then
    gone = not there(streams[lane], id)
  end
  if gone then dropped = dropped + redis.call('HDEL', KEYS[1], page[2][i]) end
end
return {page[1], dropped}
