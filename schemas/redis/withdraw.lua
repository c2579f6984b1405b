-- Withdraws rows: readers find none, and nothing that was read in Postgres before is put in their place.
-- KEYS: the rows' keys. ARGV: seconds to live.
-- Returns this server's time in ms.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, key in ipairs(KEYS) do
    redis.call('SET', key, string.format('-%.0f\n', now), 'EX', ARGV[1])
end
return now
