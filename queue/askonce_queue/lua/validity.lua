-- Functions for `look_up`, `fill` and `survey`, set before them by `answer_scripts.py`: whether an
-- answer is still valid. It is, unless something was invalidated since its stamp `built`:
-- everything, its key, one of its tags or of its asker's, or a tag that matches a glob.
local function whole(text)  -- 2^53: from there on one more makes no difference
  local number = tonumber(text)
  return number and math.abs(number) < 9007199254740992 and number
end
-- A glob as the pieces between its stars, each a pattern of fixed length: a piece that is found at
-- the first place where it can be never has to be looked for again, so that matching takes no longer
-- than pieces × bytes of the tag. (One pattern with many `.*` would try all ways to place them.)
local function glob_pieces(glob)
  local pieces, from = {}, 1
  repeat
    local star = string.find(glob, '*', from, true)
    local piece = string.sub(glob, from, (star or 0) - 1)
    local plain = string.gsub(piece, '[%^%$%(%)%%%.%[%]%+%-]', '%%%0')
    pieces[#pieces + 1] = {(string.gsub(plain, '%?', '.')), #piece}
    from = (star or 0) + 1
  until not star
  return pieces
end
local function glob_matches(pieces, tag)
  local first, last = pieces[1], pieces[#pieces]
  if not string.find(tag, '^' .. first[1]) then return false end
  if #pieces == 1 then return #tag == first[2] end
  local at = first[2] + 1
  for i = 2, #pieces - 1 do
    local _, upto = string.find(tag, pieces[i][1], at)
    if not upto then return false end
    at = upto + 1
  end
  local ending = #tag - last[2] + 1
  return ending >= at and string.find(tag, '^' .. last[1], ending) ~= nil
end
-- Returns valid(built, tags, asker's tags, key that ends in the digest), inv and base. `before`, if
-- given, holds what to take for the stamps of some members, and for `base`. O(1) for what is newer
-- than the last invalidation, else O(tags), and O(globs) for each tag that this call sees first.
local function stamps_of(stamp_key, last_key, before)
  before = before or {}
  local stamp = redis.call('HMGET', stamp_key, 'inv', 'base', 'key')
  local inv, base = whole(stamp[1]), before.base or whole(stamp[2])
  -- Keys are invalidated one by one, and rarely: when that was last.
  local keyed = stamp[3] and (whole(stamp[3]) or math.huge) or 0
  local last, globs = {}, nil
  local function score(member)
    return before[member] or tonumber(redis.call('ZSCORE', last_key, member) or 0)
  end
  local function read_globs()
    globs = {}
    local fields = redis.call('HGETALL', stamp_key)
    for i = 1, #fields, 2 do
      if string.byte(fields[i]) == 1 then
        globs[#globs + 1] = {glob_pieces(string.sub(fields[i], 2)),
          before[fields[i]] or tonumber(fields[i + 1]) or 0}
      end
    end
  end
  local function at(tag)
    local found = last[tag]
    if not found then
      found = score(tag)
      if not globs then read_globs() end
      for i = 1, #globs do
        if globs[i][2] > found and glob_matches(globs[i][1], tag) then found = globs[i][2] end
      end
      last[tag] = found
    end
    return found
  end
  local function untouched(built, tags)
    for tag in string.gmatch(tags, '[^\n]+') do
      if at(tag) > built then return false end
    end
    return true
  end
  local function valid(built, tags, asker, key)
    if built >= inv then return true end
    if built < base then return false end
    if keyed > built and score('\0' .. string.sub(key, -32)) > built then return false end
    return untouched(built, tags) and untouched(built, asker)
  end
  return valid, inv, base
end
