-- Move jobs that cannot be asked now out of the way of those that can be answered.
--
-- KEYS  1 jobs stream · 2 deferred stream · 3 id records · 4 deadlines of deferred jobs
-- ARGV  1 consumer group · 2 deferred lane · 3 most deferred jobs, then per job: entry id · id-record
--       field
-- Returns one letter a job: d deferred · f no room: it is still mine · x no longer mine.
-- Jobs of the deferred stream itself go to its end: there is always room for what is in it.
-- Re-sent, it finds the jobs gone and says x: they are deferred all the same. Whoever settles or
-- moves a job deletes its entry, so what is still there is nobody else's. O(jobs × log deferred).
-- allow-oom: what it adds it takes away elsewhere.
local room = #ARGV
if KEYS[1] ~= KEYS[2] then room = tonumber(ARGV[3]) - redis.call('XLEN', KEYS[2]) end
local letters, moved, records = {}, {}, {}
for i = 4, #ARGV, 2 do
  local letter = 'f'
  if room > 0 then
    local entry = redis.call('XRANGE', KEYS[1], ARGV[i], ARGV[i])[1]
    letter = 'x'
    if entry then
      local fields, origin, deadline = entry[2], nil, nil
      for k = 1, #fields, 2 do
        if fields[k] == 'o' then origin = fields[k + 1] end
        if fields[k] == 'd' then deadline = tonumber(fields[k + 1]) end
      end
      if not origin then  -- the new entry's id says when it was deferred
        origin = string.match(ARGV[i], '^%d+')
        fields[#fields + 1] = 'o'
        fields[#fields + 1] = origin
      end
      local id = redis.call('XADD', KEYS[2], '*', unpack(fields))
      moved[#moved + 1] = ARGV[i]
      records[#records + 1] = ARGV[i + 1]
      records[#records + 1] = ARGV[2] .. '/' .. id
      if deadline and tonumber(origin) then
        redis.call('ZADD', KEYS[4], string.format('%.0f', tonumber(origin) + deadline), id)
      end
      room, letter = room - 1, 'd'
    end
  end
  letters[#letters + 1] = letter
end
for from = 1, #moved, 1000 do
  local upto = math.min(from + 999, #moved)
  redis.call('XACK', KEYS[1], ARGV[1], unpack(moved, from, upto))
  redis.call('XDEL', KEYS[1], unpack(moved, from, upto))
  redis.call('HSET', KEYS[3], unpack(records, 2 * from - 1, 2 * upto))
end
return table.concat(letters)
