-- Make answers that were built before now invalid on one shard: by tag, by key, by a glob over tags,
-- or altogether.
--
-- KEYS  1 stamps · 2 last invalidation of tags
-- ARGV  1 '1' for everything, else '0' · 2 most globs kept · then tags; a key stands as "\0digest",
--       a glob (`*` any bytes, `?` one) as "\1glob": no tag begins so, tags are printable
-- Returns the new inv. Repeating it is harmless. O(tags + globs). allow-oom. Beyond the bound the
-- oldest glob goes, and with it, as `base` rises, all that was built before it was given.
local inv = math.max(tonumber(redis.call('HGET', KEYS[1], 'inv') or 0) + 1, now_us())
local text = string.format('%.0f', inv)
redis.call('HSET', KEYS[1], 'inv', text)
if ARGV[1] == '1' or redis.call('HEXISTS', KEYS[1], 'base') == 0 then
  redis.call('HSET', KEYS[1], 'base', text)
end
local keyed, globbed = false, false
for i = 3, #ARGV do
  local mark = string.byte(ARGV[i])
  if mark == 1 then
    redis.call('HSET', KEYS[1], ARGV[i], text)
    globbed = true
  else
    redis.call('ZADD', KEYS[2], text, ARGV[i])
    keyed = keyed or mark == 0
  end
end
if keyed then redis.call('HSET', KEYS[1], 'key', text) end
if globbed then drop_globs(KEYS[1], tonumber(ARGV[2]), 0) end
return text
