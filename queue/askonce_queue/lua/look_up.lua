-- Look up answers, or take the lease to compute them: N keys of one shard, one round trip.
--
-- KEYS  1 stamps · 2 last invalidation of tags · 3 leases · 4 tries · 5… answers
-- ARGV  1 lease token (16 bytes, unique per attempt) · 2 lease ttl_ms · 3 most new leases
--       then the asker's tags of each key, joined by line breaks
--       then, of keys with demands, pairs: number of the key, demand ("<Bdd"): flags, most ms of
--       age, ms of freshness that must be left (below 0: how stale it may be). Flag 1: do not
--       compute it; 2: compute it anew, whoever does already; 4: tell the entry also where it may
--       only stand in for an error; 8: even if nobody has failed yet. Without a demand an answer of
--       any age will do, but no stale one.
-- Returns {now_ms, inv, one result a key}. By its first byte a result is
--   \1  hit: the entry (header and body); stale when fresh_until_ms < now, and then nobody's lease.
--       Flag 1 of its header is not set when nobody has read it before: now it is.
--   S   stale + lease: S, built (double), attempt (byte), the entry
--   L   lease: L, built (double), attempt (byte; 0: the first that counts of one that was asked in
--       an outage), 1 if taken over from a dead leader (byte)
--   X   the same with an entry after it that is not what was asked for: it may stand in for an error
--   B   busy: B, the token of the leader
--   F   free, but not granted; after it an entry that may stand in for an error, if there is one
--   R   rejected: R, the remembered error (JSON)
--   E   the same with an entry that may stand in: E, bytes of the error (u32), error, entry
--   U   uncacheable, remembered briefly
--   T   B, F or U (flag 8) with an entry that may stand in: T, bytes of that result (u32), result,
--       entry
-- Finding your own token means that you own the lease: a re-sent call is harmless.
-- O(keys). allow-oom: it keeps accepted jobs moving; leases are few and bounded.
local token, lease_ms = ARGV[1], tonumber(ARGV[2])
local grants = tonumber(ARGV[3])
local us = now_us()
local now = math.floor(us / 1000)
local n = #KEYS - 4

local valid, inv, base = stamps_of(KEYS[1], KEYS[2])
if not (inv and base) then
  -- A new shard, or one whose stamps were lost or damaged: nothing built before now may be served.
  redis.call('HSET', KEYS[1], 'inv', string.format('%.0f', us), 'base', string.format('%.0f', us))
  valid, inv, base = stamps_of(KEYS[1], KEYS[2])
end
local demands, plain = {}, {}
for i = 4 + n, #ARGV, 2 do
  local flags, age, left = struct.unpack('<Bdd', ARGV[i + 1])
  demands[tonumber(ARGV[i])] = {flags % 2 >= 1, flags % 4 >= 2, flags % 8 >= 4, age, left, flags >= 8}
end

local results = {string.format('%.0f', now), string.format('%.0f', inv)}
local stale, spare, absent, digests, told = {}, {}, {}, {}, {}
for from = 1, n, 1000 do
  local upto = math.min(from + 999, n)
  local entries = redis.call('MGET', unpack(KEYS, 4 + from, 4 + upto))
  for i = from, upto do
    local entry = entries[i - from + 1]
    local usable = false
    if entry and #entry >= 36 and string.byte(entry) == 1 then
      local _, flags, created, built, fresh, over, tag_bytes = struct.unpack('<BBddddH', entry)
      usable = now < over
        and valid(built, string.sub(entry, 37, 36 + tag_bytes), ARGV[3 + i], KEYS[4 + i])
      local demand = demands[i]
      if not demand then
        usable = usable and now < fresh
      elseif usable and (demand[2] or now - created > demand[4] or fresh - now <= demand[5]) then
        usable = false
        if demand[3] then spare[i] = entry end
      end
      if usable then
        results[2 + i] = entry
        if now >= fresh then stale[i] = entry end
        if flags % 2 == 0 then
          local read = string.char(flags + 1)
          if told[KEYS[4 + i]] then  -- the same key twice in one call: read the first time
            results[2 + i] = string.sub(entry, 1, 1) .. read .. string.sub(entry, 3)
          else
            redis.call('SETRANGE', KEYS[4 + i], 1, read)
            told[KEYS[4 + i]] = true
          end
        end
      end
    end
    if not usable or stale[i] then
      absent[#absent + 1] = i
      digests[#digests + 1] = string.sub(KEYS[4 + i], -32)
    end
  end
end
if #absent == 0 then return results end

local granted, leased = {}, {}
for from = 1, #absent, 1000 do
  local upto = math.min(from + 999, #absent)
  local leases = redis.call('HMGET', KEYS[3], unpack(digests, from, upto))
  local tries = redis.call('HMGET', KEYS[4], unpack(digests, from, upto))
  for j = from, upto do
    local i, digest = absent[j], digests[j]
    local lease, try = leases[j - from + 1], tries[j - from + 1]
    local attempt, over_from_dead, result = 1, 0, nil
    local demand = demands[i] or plain
    local anew = demand[2]
    if leased[digest] then
      result = 'B' .. token  -- the same key twice in one call
    elseif lease and #lease >= 33 then  -- a shorter one is nobody's
      local holder, deadline, built, tried = struct.unpack('<c16ddB', lease)
      if holder == token then
        result = 'own'
        attempt = tried
      elseif deadline >= now then
        -- A leader whose answer is already invalid for this asker is no leader for it, nor is one
        -- that has begun before somebody asked for a newer answer.
        if not anew and valid(built, '', ARGV[3 + i], digest) then result = 'B' .. holder end
      else
        attempt, over_from_dead = math.min(tried + 1, 255), 1
      end
    end
    if try and #try >= 10 and result ~= 'own' and not anew then
      local kind, tried, until_ms = struct.unpack('<c1Bd', try)
      if until_ms >= now then
        if kind == 'A' then
          attempt = tried == 0 and attempt == 1 and 0 or math.max(attempt, tried + 1)
        elseif kind == 'R' or kind == 'U' then
          local told = string.sub(try, 11)
          result = kind .. told
          if kind == 'R' and spare[i] then
            result = 'E' .. struct.pack('<I4', #told) .. told .. spare[i]
          end
        end
      end
    end
    if demand[1] or not result and grants <= 0 then result = 'F' .. (spare[i] or '') end
    if not result or result == 'own' then
      if not result then
        granted[#granted + 1] = digest
        granted[#granted + 1] = struct.pack('<c16ddB', token, now + lease_ms, inv, attempt)
          .. (over_from_dead == 1 and '\1' or '')  -- for a call that is sent again
        leased[digest] = true
        grants = grants - 1
        result = struct.pack('<dBB', inv, attempt, over_from_dead)
      else
        local _, _, built = struct.unpack('<c16dd', lease)
        result = struct.pack('<dBB', built, attempt, string.byte(lease, 34) or 0)
      end
      if stale[i] then
        results[2 + i] = 'S' .. string.sub(result, 1, 9) .. stale[i]
      elseif spare[i] then
        results[2 + i] = 'X' .. result .. spare[i]
      else
        results[2 + i] = 'L' .. result
      end
    elseif not stale[i] then
      if spare[i] and demand[6] and not demand[1] and string.find(result, '^[BFU]') then
        if string.sub(result, 1, 1) == 'F' then result = 'F' end
        result = 'T' .. struct.pack('<I4', #result) .. result .. spare[i]
      end
      results[2 + i] = result
    end
  end
end
for from = 1, #granted, 2000 do
  redis.call('HSET', KEYS[3], unpack(granted, from, math.min(from + 1999, #granted)))
end
return results
