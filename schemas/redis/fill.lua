-- Fills in a row, or its absence, that was read in Postgres, unless it may be older than what is shown.
-- KEYS: the position of the partition where the row lives, the row. ARGV: incarnation, generation and revision that are
-- expected there; the offset that the row shows ('': it tells that itself); seconds to live; its version and its value,
-- which begins with the version.
-- Returns 1, or 0 where something else is shown, or more.
local making, offset = string.match(redis.call('GET', KEYS[1]) or '', '^(.*)/(%-?%d+)$')
if making ~= ARGV[1] or (ARGV[2] ~= '' and tonumber(offset) > tonumber(ARGV[2])) then
    return 0
end
local standing = tonumber(string.match(redis.call('GETRANGE', KEYS[2], 0, 20), '^%d+') or '-1')
if tonumber(ARGV[4]) > standing or ARGV[2] == '' then
    redis.call('SET', KEYS[2], ARGV[5], 'EX', ARGV[3])
end
return 1
