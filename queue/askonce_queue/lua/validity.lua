-- Functions for `look_up` and `fill`, set before them by `answer_scripts.py`: whether an answer is
-- still valid. It is, unless something was invalidated since its stamp `built`: everything, one of
-- its tags or of its asker's, its key, or a tag that matches a glob.
local function whole(text)  -- 2^53: from there on one more makes no difference
  local number = tonumber(text)
  return number and math.abs(number) < 9007199254740992 and number
end
-- Returns valid(built, tags, asker's tags, key that ends in the digest), inv and base. O(1) for what is newer than the
-- last invalidation, else O(tags × globs).
local function stamps_of(stamp_key, last_key)
  local stamp = redis.call('HMGET', stamp_key, 'inv', 'base', 'key')
  local inv, base = whole(stamp[1]), whole(stamp[2])
  local keys_at = tonumber(stamp[3]) or 0  -- keys are invalidated one by one, and rarely
  local last, globs = {}, nil
  local function at(member)
    local found = last[member]
    if found == nil then
      found = tonumber(redis.call('ZSCORE', last_key, member) or 0)
      last[member] = found
    end
    return found
  end
  local function read_globs()
    globs = {}
    local fields = redis.call('HGETALL', stamp_key)
    for i = 1, #fields, 2 do
      if string.sub(fields[i], 1, 1) == '*' then
        local plain = string.gsub(string.sub(fields[i], 2), '[%^%$%(%)%%%.%[%]%+%-]', '%%%0')
        globs[#globs + 1] = {'^' .. string.gsub(string.gsub(plain, '%?', '.'), '%*', '.*') .. '$',
          tonumber(fields[i + 1]) or 0}
      end
    end
  end
  local function untouched(built, tags)
    for tag in string.gmatch(tags, '[^\n]+') do
      if at(tag) > built then return false end
      for i = 1, #globs do
        if globs[i][2] > built and string.find(tag, globs[i][1]) then return false end
      end
    end
    return true
  end
  local function valid(built, tags, asker, key)
    if built >= inv then return true end
    if built < base then return false end
    if keys_at > built and at('\0' .. string.sub(key, -32)) > built then return false end
    if not globs then read_globs() end
    return untouched(built, tags) and untouched(built, asker)
  end
  return valid, inv, base
end
