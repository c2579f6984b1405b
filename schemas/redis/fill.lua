-- Fills in a row, or its absence, that was read in Postgres, unless it may be older than what is shown.
-- KEYS: the position of the partition where the row lives, the row, the rows that are ahead of Postgres. ARGV: incarnation,
-- generation and revision that are expected there; the offset that the row shows ('': it tells that itself); seconds to live;
-- its version and its value, which begins with the version.
-- Returns 1, or 0 where something else is shown, or more.
local making, offset, hash = string.match(redis.call('GET', KEYS[1]) or '', '^(.*)/(%-?%d+)(~?%x*)$')
if making ~= ARGV[1] then
    return 0
end
if ARGV[2] ~= '' and tonumber(offset) > tonumber(ARGV[2]) then
    -- Since then the row has not changed, if every row that has is known, and it is none of them. A build that writes no
    -- hash does not keep them.
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
