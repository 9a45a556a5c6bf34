-- Say how much of the server's memory is used, and how much of that cannot be evicted.
--
-- KEYS  1 memory record
-- ARGV  none
-- Returns {bytes used, maxmemory (0 = no limit), bytes held: what eviction cannot free, 1 if the
-- policy evicts answers}. Writes nothing. O(1). allow-oom.
local _, _, _, _, _, mean = recall(KEYS[1])
local used, most, held, evicts = measure(mean, 0)
return {string.format('%.0f', used), string.format('%.0f', most), string.format('%.0f', held), evicts}
