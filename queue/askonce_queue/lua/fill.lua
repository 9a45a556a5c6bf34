-- Write answers, each only by the holder of its lease, and give the leases back.
--
-- KEYS  1 stamps · 2 last invalidation of tags · 3 leases · 4 tries · 5 memory record · 6… answers
-- ARGV  1 share of maxmemory at which fills stop where nothing is evicted, then per answer:
--       token · fresh_ms · keep_ms (from now; keep ≥ fresh) · tags (joined by line breaks) · body
-- Returns {now_ms, one letter an answer}: f filled · x fenced: the lease is somebody else's
--         i invalidated while it was computed · m memory is short: good, and not kept.
-- O(answers). Not allow-oom: under memory pressure fills stop, jobs do not.
local us = now_us()
local now = math.floor(us / 1000)
local size = 0
for i = 2, #ARGV do size = size + #ARGV[i] end
local spare, evicts, seen, mean = room_for(KEYS[5], tonumber(ARGV[1]), size)
-- Answers that nothing evicts would keep jobs out for as long as their TTL.
local kept = evicts == 1 or spare == math.huge
local valid, inv, base = stamps_of(KEYS[1], KEYS[2])
local max_ttl = tonumber(redis.call('HGET', KEYS[1], 'max_ttl_ms') or 0)
local letters = {}
for i = 1, #KEYS - 5 do
  local at = 1 + (i - 1) * 5
  local digest, tags = string.sub(KEYS[5 + i], -32), ARGV[at + 4]
  local lease = redis.call('HGET', KEYS[3], digest)
  local letter = 'x'
  if lease and inv and base and string.sub(lease, 1, 16) == ARGV[at + 1] then
    local _, _, built = struct.unpack('<c16dd', lease)
    letter = not valid(built, tags, '', digest) and 'i' or kept and 'f' or 'm'
    if letter == 'f' then
      local keep = tonumber(ARGV[at + 3])
      local header = struct.pack('<BBddddH', 1, 0, now, built, now + tonumber(ARGV[at + 2]),
        now + keep, #tags)
      redis.call('SET', KEYS[5 + i], header .. tags .. ARGV[at + 5], 'PX', math.ceil(keep))
      if keep > max_ttl then
        max_ttl = keep
        redis.call('HSET', KEYS[1], 'max_ttl_ms', string.format('%.0f', keep))
      end
    end
    redis.call('HDEL', KEYS[3], digest)
    redis.call('HDEL', KEYS[4], digest)
  end
  letters[i] = letter
end
if evicts == 1 then look_at_answers(KEYS[5], string.sub(KEYS[6], 1, -33), seen, mean) end
return {string.format('%.0f', now), table.concat(letters)}
