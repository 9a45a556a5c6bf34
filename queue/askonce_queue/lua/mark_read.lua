-- Mark answers as read that a worker's memory has served; the TTL stays.
--
-- KEYS  1… answers
-- ARGV  per answer: its `created` (ms), so that a later answer of the same key is not marked
-- Returns one letter an answer: f nobody had read it before · r somebody had · x it is gone.
-- O(answers). allow-oom: nothing grows.
local letters = {}
for i = 1, #KEYS do
  local head = redis.call('GETRANGE', KEYS[i], 0, 35)
  letters[i] = 'x'
  if #head == 36 and string.byte(head) == 1 then
    local _, flags, created = struct.unpack('<BBd', head)
    if string.format('%.0f', created) == ARGV[i] then
      letters[i] = flags % 2 == 1 and 'r' or 'f'
      if flags % 2 == 0 then redis.call('SETRANGE', KEYS[i], 1, string.char(flags + 1)) end
    end
  end
end
return table.concat(letters)
