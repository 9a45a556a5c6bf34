-- Say of stored answers when they were built and what their tags are, where they are valid: for
-- counting what an invalidation takes. Bodies stay where they are.
--
-- KEYS  1 stamps · 2 last invalidation of tags · 3… answers
-- ARGV  1 what to take for `base`, '' for what it is · then pairs: tag, key or glob, and what to take
--       for the stamp of its last invalidation
-- Returns one text an answer: '' when there is none that is valid, else built (double), tags (joined
-- by line breaks). Writes nothing. O(answers × tags). allow-oom.
local before = {base = tonumber(ARGV[1])}
for i = 2, #ARGV, 2 do before[ARGV[i]] = tonumber(ARGV[i + 1]) end
local valid, inv, base = stamps_of(KEYS[1], KEYS[2], before)
local results = {}
for i = 1, #KEYS - 2 do
  local head, result = redis.call('GETRANGE', KEYS[2 + i], 0, 291), ''
  if inv and base and #head >= 36 and string.byte(head) == 1 then
    local _, _, _, built, _, _, tag_bytes = struct.unpack('<BBddddH', head)
    local tags = string.sub(head, 37, 36 + tag_bytes)
    if #head == 292 and tag_bytes > 256 then
      tags = redis.call('GETRANGE', KEYS[2 + i], 36, 35 + tag_bytes)
    end
    if valid(built, tags, '', KEYS[2 + i]) then
      result = struct.pack('<d', built) .. tags
    end
  end
  results[i] = result
end
return results
