-- Acknowledge jobs, reply to those whose acknowledgement counted, delete them: all or nothing.
--
-- KEYS  1 jobs stream · 2 id records · 3 client leases · 4… one reply stream a group
-- ARGV  1 consumer group, then per group of jobs with one reply address:
--       owner ('' for a named stream) · n · replies (NDJSON, n lines in order)
--       then n × (entry id, id-record field)
-- Returns how many acknowledgements counted. A re-sent call, a zombie and a second delivery find
-- them gone and change nothing. O(jobs). allow-oom: it is what frees memory.
-- What is acknowledged and not replied is lost, so nothing after XACK may end the script: neither a
-- reply stream nor a hash that is not what it should be.
local at, total = 2, 0
for k = 4, #KEYS do
  local owner, n, replies = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2]
  local entries, records = {}, {}
  for i = 1, n do
    entries[i] = ARGV[at + 1 + 2 * i]
    records[i] = ARGV[at + 2 + 2 * i]
  end
  at = at + 3 + 2 * n
  local acked = redis.call('XACK', KEYS[1], ARGV[1], unpack(entries))
  local mine = acked
  if acked > 0 and acked < n then
    -- Acknowledged entries are deleted in the same script: what is still in the stream was ours.
    local line, lines, mine_entries, mine_records = 0, {}, {}, {}
    for text in string.gmatch(replies, '[^\n]+') do
      line = line + 1
      if redis.call('XDEL', KEYS[1], entries[line]) == 1 then
        lines[#lines + 1] = text .. '\n'
        mine_entries[#mine_entries + 1] = entries[line]
        mine_records[#mine_records + 1] = records[line]
      end
    end
    entries, records, replies, mine = mine_entries, mine_records, table.concat(lines), #lines
  end
  if mine > 0 then
    -- A client that vanished for longer than the retention has no stream to leak into.
    if owner == '' or redis.pcall('HEXISTS', KEYS[3], owner) ~= 0 then
      local added = redis.pcall('XADD', KEYS[k], '*', 'n', mine, 'r', replies)
      if added.err and string.find(added.err, 'NOPERM', 1, true) then
        -- Not a fault of the data: whoever may write replies shall settle them.
        for _, id in ipairs(entries) do
          redis.pcall('XCLAIM', KEYS[1], ARGV[1], 'returned', 0, id, 'FORCE', 'JUSTID')
        end
        return added
      elseif added.err then
        redis.call('UNLINK', KEYS[k])  -- no stream, or one that takes no more: nobody can read it
        redis.call('XADD', KEYS[k], '*', 'n', mine, 'r', replies)
      end
    end
    redis.call('XDEL', KEYS[1], unpack(entries))
    redis.pcall('HDEL', KEYS[2], unpack(records))
  end
  total = total + mine
end
return total
