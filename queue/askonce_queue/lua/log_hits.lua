-- Log hits for people to judge, and drop the oldest beyond the bound.
--
-- KEYS  1 hits
-- ARGV  1 most hits kept · then for each: key, task, source, age in ms, answer, input, tenant
-- Returns how many were dropped. O(hits). Not allow-oom: it is a sample, and can do without. Sent
-- again it logs twice, which readers, who take each key once, can bear.
for i = 2, #ARGV, 7 do
  redis.call('XADD', KEYS[1], '*', 'key', ARGV[i], 'task', ARGV[i + 1], 'source', ARGV[i + 2],
    'age_ms', ARGV[i + 3], 'answer', ARGV[i + 4], 'input', ARGV[i + 5], 'tenant', ARGV[i + 6])
end
return redis.call('XTRIM', KEYS[1], 'MAXLEN', ARGV[1])
