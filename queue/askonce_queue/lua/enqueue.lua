-- Append jobs to a lane, once each, within its bounds.
--
-- KEYS  1 jobs stream · 2 id records · 3 owed replies · 4 client leases · 5 reply stream
--       6 memory record
-- ARGV  1 client · 2 client token · 3 lane · 4 reply address ('' = the client's own stream)
--       5 max backlog · 6 max unread · 7 share of maxmemory that may be held · 8 stride, then per
--       job: id, payload [, deadline_ms  when the stride is 3] [, tenant, tags, deadline_ms  when
--       it is 5]; deadline_ms is relative, '' for none
-- Returns one letter a job: a accepted · s same job is already queued · c conflict
--         f backlog full · u too many replies owed · m memory full; or '!' when the client lost its
--         name.
-- O(jobs). allow-oom: it keeps its own bound on memory, below the server's, and can so tell a job
-- that does not fit from one that was accepted before (the server would refuse both).
local JOB_BYTES = 200  -- of a job's entry and id record, beside its fields
local client, token, lane, address = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local stride = tonumber(ARGV[8])
local holder = redis.call('HGET', KEYS[4], client)
if not holder or string.sub(holder, 1, #token) ~= token then return '!' end

local room = tonumber(ARGV[5]) - redis.call('XLEN', KEYS[1])
local unread = tonumber(ARGV[6])
if address == '' then
  unread = unread - tonumber(redis.call('HGET', KEYS[3], client) or 0)
elseif redis.call('XLEN', KEYS[5]) < unread then
  unread = math.huge
else
  unread = 0
end

local fields, first, size = {}, 9, 0
local count = (#ARGV - 8) / stride
for i = 1, count do fields[i] = client .. '/' .. ARGV[first + (i - 1) * stride] end
for i = first, #ARGV do size = size + #ARGV[i] end
local spare = room_for(KEYS[6], tonumber(ARGV[7]), size)
local scarce = spare < math.huge
local function bytes_of(i)
  local bytes = JOB_BYTES
  for k = first + (i - 1) * stride, first + i * stride - 1 do bytes = bytes + #ARGV[k] end
  return bytes
end
local known = redis.call('HMGET', KEYS[2], unpack(fields))

-- The whole job is compared, not a digest of it: it is there as long as its record is.
local function same(at, entry)
  local want = {p = ARGV[at + 1], r = address, n = '', g = '', d = ''}
  if stride > 2 then want.d = ARGV[at + stride - 1] end
  if stride == 5 then want.n, want.g = ARGV[at + 2], ARGV[at + 3] end
  local got = {r = '', n = '', g = '', d = ''}
  for i = 1, #entry, 2 do got[entry[i]] = entry[i + 1] end
  return want.p == got.p and want.r == got.r and want.n == got.n and want.g == got.g
    and want.d == got.d
end

local verdicts, records, accepted, here = {}, {}, 0, {}
for i = 1, count do
  local at = first + (i - 1) * stride
  local field, record, verdict = fields[i], known[i] or here[fields[i]], nil
  if record then
    local old_lane, old_id = string.match(record, '^([^/]*)/(.*)$')
    -- The other lanes' streams are of the same slot: their keys end in another lane.
    local stream = string.sub(KEYS[1], 1, -#lane - 1) .. old_lane
    local found = redis.call('XRANGE', stream, old_id, old_id)
    if found[1] then
      local home = string.gsub(old_lane, '%.deferred$', '')
      verdict = home == lane and same(at, found[1][2]) and 's' or 'c'
    end
  end
  if not verdict then
    if room <= 0 then verdict = 'f'
    elseif unread <= 0 then verdict = 'u'
    elseif scarce and spare < bytes_of(i) then verdict = 'm'
    else
      local id
      if stride == 2 and address == '' then
        id = redis.call('XADD', KEYS[1], '*', 'v', '1', 'c', client, 'i', ARGV[at], 'p', ARGV[at + 1])
      elseif stride == 3 and address == '' and ARGV[at + 2] ~= '' then
        id = redis.call('XADD', KEYS[1], '*', 'v', '1', 'c', client, 'i', ARGV[at], 'p', ARGV[at + 1],
          'd', ARGV[at + 2])
      else
        local entry = {'v', '1', 'c', client, 'i', ARGV[at], 'p', ARGV[at + 1]}
        local function add(name, value)
          if value ~= '' then entry[#entry + 1] = name; entry[#entry + 1] = value end
        end
        add('r', address)
        if stride == 5 then add('n', ARGV[at + 2]); add('g', ARGV[at + 3]) end
        if stride > 2 then add('d', ARGV[at + stride - 1]) end
        id = redis.call('XADD', KEYS[1], '*', unpack(entry))
      end
      local value = lane .. '/' .. id
      here[field] = value
      records[#records + 1] = field
      records[#records + 1] = value
      room, unread, accepted, verdict = room - 1, unread - 1, accepted + 1, 'a'
      if scarce then spare = spare - bytes_of(i) end
    end
  end
  verdicts[i] = verdict
end
if accepted > 0 then
  redis.call('HSET', KEYS[2], unpack(records))
  if address == '' then redis.call('HINCRBY', KEYS[3], client, accepted) end
end
return table.concat(verdicts)
