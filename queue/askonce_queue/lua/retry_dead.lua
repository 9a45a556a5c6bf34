-- Put the job of a dead letter back into a lane, its reply to go to a named stream, and delete the
-- letter. The client has had its one reply: the error. It is a new start: a deadline counts from now.
--
-- KEYS  1 dead letters · 2 jobs stream · 3 id records · 4 reply stream
-- ARGV  1 letter · 2 lane · 3 id-record field · 4 reply address · 5 max backlog · 6 max unread
-- Returns one letter: r retried · g the letter is gone · c another job of its id is queued
--         f backlog full · u reply stream full. All but r change nothing.
-- O(fields). Not allow-oom: it adds a job, and there will be a reply.
local lane, field, address = ARGV[2], ARGV[3], ARGV[4]

local function queued()
  local old_lane, id = string.match(redis.call('HGET', KEYS[3], field) or '', '^([^/]*)/(.*)$')
  if not id then return nil end
  -- The other lanes' streams are of the same slot: their keys end in another lane.
  local found = redis.pcall('XRANGE', string.sub(KEYS[2], 1, -#lane - 1) .. old_lane, id, id)
  return found[1] and found[1][2]
end

local job = queued()
local letter = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not letter then
  -- A re-sent call finds what the first one did: the job, queued with this address.
  for i = 1, job and #job or 0, 2 do
    if job[i] == 'r' and job[i + 1] == address then return 'r' end
  end
  return 'g'
end
if job then return 'c' end
if redis.call('XLEN', KEYS[2]) >= tonumber(ARGV[5]) then return 'f' end
if redis.call('XLEN', KEYS[4]) >= tonumber(ARGV[6]) then return 'u' end

local fields, entry = letter[2], {}
for i = 9, #fields, 2 do  -- after code, message, stream and entry, see bury.lua
  if fields[i] ~= 'r' and fields[i] ~= 'o' then
    entry[#entry + 1] = fields[i]
    entry[#entry + 1] = fields[i + 1]
  end
end
entry[#entry + 1] = 'r'
entry[#entry + 1] = address
local id = redis.call('XADD', KEYS[2], '*', unpack(entry))
redis.call('HSET', KEYS[3], field, lane .. '/' .. id)
redis.call('XDEL', KEYS[1], ARGV[1])
return 'r'
