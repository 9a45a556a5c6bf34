-- Take deferred jobs whose deadline has passed out of their turn, to tell their clients so.
--
-- KEYS  1 deferred stream · 2 deadlines of deferred jobs
-- ARGV  1 consumer group · 2 me · 3 most jobs to look at
-- Returns {jobs looked at, list of {entry id, fields}: pending to me now}. Those that are pending to
-- somebody, or gone, are forgotten here: who has them minds their deadlines. A job that is taken may
-- be delivered once more when its turn comes before its settle; the settle counts once.
-- O(jobs × log deferred). allow-oom: it leads to replies and deletions.
local due = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms(), 'LIMIT', 0, tonumber(ARGV[3]))
local taken = {}
for _, id in ipairs(due) do
  if #redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1) == 0 then
    local claim = {'XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', 1, 'FORCE'}
    local entry = redis.call(unpack(claim))[1]
    if entry and entry[2] then taken[#taken + 1] = {entry[1], entry[2]} end
  end
  redis.call('ZREM', KEYS[2], id)
end
return {#due, taken}
