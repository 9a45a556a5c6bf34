-- Settle one job that cannot be answered, and keep it as a dead letter for people.
--
-- KEYS  1 jobs stream · 2 id records · 3 client leases · 4 reply stream · 5 dead letters
-- ARGV  1 consumer group · 2 owner ('' for a named stream, '-' when there is nobody to reply to)
--       3 entry id · 4 id-record field · 5 reply (one NDJSON line) · 6 max dead letters
--       7 code · 8 message · then the envelope's fields, name and value, as they were
-- Returns {1 if it counted, dead letters dropped to make room}. O(1). allow-oom.
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[3]) == 0 then return {0, 0} end
local letter = {'code', ARGV[7], 'message', ARGV[8], 'stream', KEYS[1], 'entry', ARGV[3]}
for i = 9, #ARGV do letter[#letter + 1] = ARGV[i] end
redis.call('XADD', KEYS[5], '*', unpack(letter))
local dropped = redis.call('XTRIM', KEYS[5], 'MAXLEN', ARGV[6])
if ARGV[2] == '' or (ARGV[2] ~= '-' and redis.call('HEXISTS', KEYS[3], ARGV[2]) == 1) then
  redis.call('XADD', KEYS[4], '*', 'n', 1, 'r', ARGV[5])
end
redis.call('XDEL', KEYS[1], ARGV[3])
redis.call('HDEL', KEYS[2], ARGV[4])
return {1, dropped}
