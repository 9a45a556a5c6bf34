-- Second prelude of the scripts that add data: how much of the server's memory is taken for good.
--
-- Answers give way to jobs (volatile-*), so a full server is no full queue: what counts is what
-- eviction cannot free. The server knows what it uses and how many keys may go, not how large they
-- are: every fill looks at a few answers, and their mean is kept. The record of a shard says what
-- was last found, so that not every call has to ask: time found (ms) · bytes held · maxmemory ·
-- 1 if the policy evicts answers · answers looked at (at most SAMPLES) · their mean bytes.
local RECORD = '<dddBdd'
local LASTS_MS = 1000
local MOST_BYTES_A_MS = 500000  -- more than one server takes in
local SAMPLES = 1024
local FIRST_LOOKS, LOOKS = 4, 1  -- at answers, a fill, until there are SAMPLES and from then on
local PLACES_BYTES = 32  -- of a key in the tables of keys and deadlines; MEMORY USAGE leaves it out

local function recall(key)
  local record = redis.call('GET', key)
  if record and #record == struct.size(RECORD) then return struct.unpack(RECORD, record) end
  return 0, 0, 0, 0, 0, 0
end

-- Bytes used · maxmemory · bytes held: what eviction cannot free · 1 if the policy evicts answers.
-- `mean`: bytes of an answer, 0 when none was looked at; `size`: of this call's own arguments.
local function measure(mean, size)
  local info = redis.call('INFO', 'memory')
  local function read(name)
    return tonumber(string.match(info, '\n' .. name .. ':(%d+)') or 0)
  end
  local used, most = read('used_memory') - read('mem_not_counted_for_evict'), read('maxmemory')
  if not string.find(info, '\nmaxmemory_policy:volatile', 1, true) then return used, most, used, 0 end
  -- The server evicts before every command, a little each: this far over, it does not keep up.
  if most > 0 and used - size > 1.1 * most then return used, most, used, 1 end
  local keys, expiring = 0, 0
  for all, some in string.gmatch(redis.call('INFO', 'keyspace'), 'keys=(%d+),expires=(%d+)') do
    keys, expiring = keys + all, expiring + some
  end
  if mean == 0 and keys > 0 then mean = used / keys end
  return used, most, math.max(0, used - expiring * mean), 1
end

-- How many bytes a call of `size` bytes may add before `share` of maxmemory is held, math.huge when
-- all of it fits; then 1 if the policy evicts answers, the answers looked at, their mean bytes.
local function room_for(key, share, size)
  local now = now_ms()
  local at, held, most, evicts, sampled, mean = recall(key)
  local room = most > 0 and share * most - held or math.huge
  local age = now - at
  if age < 0 or age > LASTS_MS or age * MOST_BYTES_A_MS + 8 * size > room then
    local _
    _, most, held, evicts = measure(mean, size)
    redis.call('SET', key, struct.pack(RECORD, now, held, most, evicts, sampled, mean))
    room = most > 0 and share * most - held or math.huge
    -- This call's arguments are in the server's memory already, and counted as held.
    if room < 0 then return room + size, evicts, sampled, mean end
  end
  return math.huge, evicts, sampled, mean
end

-- Look at a few answers (keys that begin with `prefix`), so that their mean size stays known.
local function look_at_answers(key, prefix, sampled, mean)
  for _ = 1, sampled < SAMPLES and FIRST_LOOKS or LOOKS do
    local answer = redis.call('RANDOMKEY')
    if answer and string.sub(answer, 1, #prefix) == prefix then
      local bytes = redis.call('MEMORY', 'USAGE', answer)
      if bytes then
        sampled = math.min(sampled + 1, SAMPLES)
        mean = mean + (bytes + PLACES_BYTES - mean) / sampled
      end
    end
  end
  local at, held, most, evicts = recall(key)
  redis.call('SET', key, struct.pack(RECORD, at, held, most, evicts, sampled, mean))
end
