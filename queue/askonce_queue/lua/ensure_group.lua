-- Create a job stream and its consumer group, from 0: settled entries are gone, nothing comes twice.
--
-- KEYS  1 jobs stream
-- ARGV  1 consumer group
-- Returns 1 when it was created, 0 when it was there. O(1). allow-oom, as record_shards.
local made = redis.pcall('XGROUP', 'CREATE', KEYS[1], ARGV[1], '0', 'MKSTREAM')
if type(made) == 'table' and made.err then
  if string.find(made.err, 'BUSYGROUP', 1, true) then return 0 end
  return made
end
return 1
