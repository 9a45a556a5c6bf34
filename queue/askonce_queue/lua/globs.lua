-- A function for `invalidate` and `sweep_tags`, set before them by `answer_scripts.py`.
-- Drop globs that were given before `oldest`, and the oldest beyond `most`; `base` rises to the
-- latest that is dropped, so that what it took stays taken. Returns how many. O(globs).
local function drop_globs(stamp_key, most, oldest)
  local found = {}
  local fields = redis.call('HGETALL', stamp_key)
  for i = 1, #fields, 2 do
    if string.byte(fields[i]) == 1 then
      found[#found + 1] = {fields[i], tonumber(fields[i + 1]) or 0}
    end
  end
  table.sort(found, function(a, b) return a[2] < b[2] end)
  local dropped, base = 0, 0
  for i = 1, #found do
    if found[i][2] < oldest or #found - dropped > most then
      redis.call('HDEL', stamp_key, found[i][1])
      dropped, base = dropped + 1, found[i][2]
    end
  end
  if base > tonumber(redis.call('HGET', stamp_key, 'base') or 0) then
    redis.call('HSET', stamp_key, 'base', string.format('%.0f', base))
  end
  return dropped
end
