-- Drop id records and solo tries whose job is no longer in its stream, a few at a time.
--
-- KEYS  1 the hash · 2… the job streams of the shard
-- ARGV  1 cursor · 2 count · 3 where `lane/entry` stands: 'value' or 'field' · 4 grace_ms
--       5… the lanes of the streams, in order
-- Returns {next cursor, dropped}. O(count). allow-oom.
local streams = {}
for i = 5, #ARGV do streams[ARGV[i]] = KEYS[i - 3] end
local now, dropped = now_ms(), 0
local page = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
for i = 1, #page[2], 2 do
  local lane, id = string.match(ARGV[3] == 'field' and page[2][i] or page[2][i + 1], '^([^/]*)/(.*)$')
  local stream = streams[lane]
  local since = tonumber(string.match(id or '', '^%d+') or 0)
  if stream and since + tonumber(ARGV[4]) < now and #redis.call('XRANGE', stream, id, id) == 0 then
    redis.call('HDEL', KEYS[1], page[2][i])
    dropped = dropped + 1
  end
end
return {page[1], dropped}
