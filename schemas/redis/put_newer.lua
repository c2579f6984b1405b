-- Puts rows that are newer than what stands there.
-- KEYS: the rows' keys. ARGV: deadline in ms of this server's clock ('0': none), seconds to live, a time of this clock
-- from before the rows were read in Postgres, then for each key its version and its value. A value begins with its version
-- and a line end, or, where the row was withdrawn, with '-' and the time of that: then only what was read later is newer.
-- Returns this server's time in ms, or -1 when the deadline had passed and nothing was written.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local deadline = tonumber(ARGV[1])
if deadline > 0 and now > deadline then
    return -1
end
local read_at = tonumber(ARGV[3])
for i, key in ipairs(KEYS) do
    local version = tonumber(ARGV[2 * i + 2])
    local standing = redis.call('GETRANGE', key, 0, 20)
    local standing_version = tonumber(string.match(standing, '^%d+') or '-1')
    local withdrawn_at = tonumber(string.match(standing, '^%-(%d+)') or '-1')
    if version > standing_version and read_at > withdrawn_at then
        redis.call('SET', key, ARGV[2 * i + 3], 'EX', ARGV[2])
    elseif version == standing_version then
        redis.call('EXPIRE', key, ARGV[2])
    end
end
return now
