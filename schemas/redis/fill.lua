-- Caches a row that was read from Postgres, or its absence, unless it may be older than the position that Redis shows.
-- KEYS: the position of the row's partition, the row, the set of rows ahead of Postgres.
-- ARGV: the expected incarnation, generation and revision; the offset that the row shows ('' if its value contains it);
-- the time to live in seconds; the row's version and its value, which begins with the version.
-- Returns 1, or 0 if Redis shows something else or may show a newer row.
local making, offset, hash = string.match(redis.call('GET', KEYS[1]) or '', '^(.*)/(%-?%d+)(~?%x*)$')
if making ~= ARGV[1] then
    return 0
end
if ARGV[2] ~= '' and tonumber(offset) > tonumber(ARGV[2]) then
    -- The row has not changed since then if all changed rows are known and it is not among them. Builds that write no
    -- hash do not maintain the set of changed rows.
    local stored = redis.call('ZSCORE', KEYS[3], '')
    if hash == '' or not stored or tonumber(stored) > tonumber(ARGV[2]) or redis.call('ZSCORE', KEYS[3], KEYS[2]) then
        return 0
    end
end
local standing = tonumber(string.match(redis.call('GETRANGE', KEYS[2], 0, 20), '^%d+') or '-1')
if tonumber(ARGV[4]) > standing or ARGV[2] == '' then
    redis.call('SET', KEYS[2], ARGV[5], 'EX', ARGV[3])
end
return 1
