-- Take and give back a worker's share of what a model may be asked: slots for calls at the same
-- time, and calls of the next moment. Slots are leased; calls come from two token buckets.
--
-- KEYS  1 quota of the model · 2 names of all quotas
-- ARGV  1 model · 2 holder · 3 number of this request, 0: its last · 4 slots' ttl_ms · 5 slots
--       kept · 6 slots wanted, those kept among them · 7 slots of all workers, 0: any number ·
--       8 calls wanted · 9 calls given back · 10 tokens each of them was charged · 11 when they
--       were granted, us · 12 how long calls are valid, us · 13 calls at once, 0: no such limit ·
--       14 calls per second · 15 tokens at once beyond a call's, 0: no such limit · 16 tokens per
--       second · 17 tokens a call, as long as nobody knows · 18 calls that have reported their
--       tokens · 19 their tokens · 20 what they were charged · 21 how long an unused quota is
--       kept, ms
-- Returns {slots, fair share of slots, 1 if more are wanted than there are, calls, when they were
-- granted (us), how long ago (us), tokens each was charged, ms until there is a call for somebody,
-- holders}. A request that is re-sent takes and gives nothing twice. Kept slots are never taken
-- away: who has more than a fair share gives them back as calls end. A holder that is silent for
-- its ttl has lost its slots, but time in which nobody could ask does not count.
-- O(holders log holders). allow-oom.
local RECORD, STATE, TURN_US, MEMORY = '<ddddddd', '<dddd', 5e6, 0.98
local now, me, number = now_us(), ARGV[2], tonumber(ARGV[3])
local ttl_us, kept, wanted = tonumber(ARGV[4]) * 1000, tonumber(ARGV[5]), tonumber(ARGV[6])
local total, calls_wanted = tonumber(ARGV[7]), tonumber(ARGV[8])
local most_calls, calls_per_s = tonumber(ARGV[13]), tonumber(ARGV[14])
local most_tokens, tokens_per_s = tonumber(ARGV[15]), tonumber(ARGV[16])

-- The buckets, filled up to now.
local state = redis.call('HGET', KEYS[1], '.')
local last, calls, tokens, each = now, most_calls, most_tokens, 0
if state and #state == struct.size(STATE) then
  last, calls, tokens, each = struct.unpack(STATE, state)
else
  tokens = tokens + tonumber(ARGV[17])
end
local price = each > 0 and math.ceil(each) or tonumber(ARGV[17])
local passed_s = math.max(0, now - last) / 1e6
calls = math.min(most_calls, calls + calls_per_s * passed_s)
tokens = math.min(most_tokens + price, tokens + tokens_per_s * passed_s)

-- The holders that live.
local outage = now - last > ttl_us / 2
local others, holders, hungry, wants, mine = 0, 1, 0, {}, nil
local records = redis.call('HGETALL', KEYS[1])
for i = 1, #records, 2 do
  local name, record = records[i], records[i + 1]
  if name ~= '.' then
    if #record ~= struct.size(RECORD) then
      redis.call('HDEL', KEYS[1], name)
    elseif name == me then
      mine = {struct.unpack(RECORD, record)}
    else
      local deadline, sent, slots, want, calls_want, got, at = struct.unpack(RECORD, record)
      if outage and deadline < now + ttl_us then
        deadline = now + ttl_us
        redis.call('HSET', KEYS[1], name,
          struct.pack(RECORD, deadline, sent, slots, want, calls_want, got, at))
      end
      if deadline < now then
        redis.call('HDEL', KEYS[1], name)
      else
        others, holders = others + slots, holders + 1
        if want > 0 then wants[#wants + 1] = {name, want} end
        if calls_want > 0 then hungry = hungry + 1 end
      end
    end
  end
end

-- Slots: max-min fair by what everybody wants. What does not divide evenly goes to the first by
-- name, or from one to the next where there are fewer slots than holders.
local slots, share, contended = 0, 0, 0
if total > 0 then
  if wanted > 0 then wants[#wants + 1] = {me, wanted} end
  table.sort(wants, function(a, b)
    if a[2] ~= b[2] then return a[2] < b[2] end
    return a[1] < b[1]
  end)
  local left, first = total, 1
  while first <= #wants and wants[first][2] * (#wants - first + 1) <= left do
    left = left - wants[first][2]
    if wants[first][1] == me then share = wants[first][2] end
    first = first + 1
  end
  local rest, before = {}, nil
  for i = first, #wants do rest[#rest + 1] = wants[i][1] end
  if #rest > 0 then
    contended = 1
    table.sort(rest)
    for i, name in ipairs(rest) do
      if name == me then before = i - 1 end
    end
    if before then
      local even = math.floor(left / #rest)
      local odd = left - even * #rest
      if even == 0 then before = (before + math.floor(now / TURN_US) * odd) % #rest end
      share = even + (before < odd and 1 or 0)
    end
  end
  slots = math.max(kept, math.min(share, total - others))
end

-- Calls: not those of a request that was heard before.
local granted, granted_at = 0, now
if mine and mine[2] == number then
  granted, granted_at = mine[6], mine[7]
else
  if now - tonumber(ARGV[11]) <= tonumber(ARGV[12]) then
    calls = math.min(most_calls, calls + tonumber(ARGV[9]))
    tokens = tokens + tonumber(ARGV[9]) * tonumber(ARGV[10])
  end
  local reported = tonumber(ARGV[18])
  if reported > 0 then
    -- A report beyond all reason must not make every call look like that.
    local mean = math.min(tonumber(ARGV[19]) / reported, 60 * tokens_per_s)
    each = each > 0 and mean + (each - mean) * MEMORY ^ reported or math.max(1, mean)
    tokens = math.max(-60 * tokens_per_s, tokens - tonumber(ARGV[19]) + tonumber(ARGV[20]))
    price = math.max(1, math.ceil(each))
  end
  tokens = math.min(most_tokens + price, tokens)
  if calls_wanted > 0 then
    local there = calls_wanted
    if most_calls > 0 then there = math.min(there, math.floor(calls)) end
    if most_tokens > 0 then
      there = math.min(there, math.floor(tokens / price))
      if each == 0 then there = math.min(there, 1) end
    end
    there = math.max(0, there)
    granted = math.min(there, calls_wanted)
    if hungry > 0 and granted > 1 then
      local most = math.huge
      if most_calls > 0 then most = math.floor(calls) end
      if most_tokens > 0 then most = math.min(most, math.floor(tokens / price)) end
      granted = math.min(granted, math.max(1, math.floor(most / (hungry + 1))))
    end
    calls = calls - granted
    tokens = tokens - granted * price
  end
end
local wait_s = 0
if most_calls > 0 then wait_s = (1 - calls) / calls_per_s end
if most_tokens > 0 then wait_s = math.max(wait_s, (price - tokens) / tokens_per_s) end

local told = kept + wanted + calls_wanted + granted + tonumber(ARGV[9]) + tonumber(ARGV[18])
if number > 0 and told > 0 then
  redis.call('HSET', KEYS[1], me,
    struct.pack(RECORD, now + ttl_us, number, slots, wanted, calls_wanted, granted, granted_at))
else
  redis.call('HDEL', KEYS[1], me)
end
redis.call('HSET', KEYS[1], '.', struct.pack(STATE, now, calls, tokens, each))
redis.call('ZADD', KEYS[2], string.format('%.0f', now / 1000 + tonumber(ARGV[21])), ARGV[1])
return {slots, share, contended, granted, string.format('%.0f', granted_at),
  string.format('%.0f', now - granted_at), price,
  string.format('%.0f', math.ceil(math.max(0, wait_s) * 1000)), holders}
