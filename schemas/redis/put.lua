-- Puts rows of an incarnation that nobody reads yet.
-- KEYS: the rows. ARGV: seconds to live, then for each row its version and its value, which begins with the version.
for i, key in ipairs(KEYS) do
    local standing = tonumber(string.match(redis.call('GETRANGE', key, 0, 20), '^%d+') or '-1')
    if tonumber(ARGV[2 * i]) >= standing then
        redis.call('SET', key, ARGV[2 * i + 1], 'EX', ARGV[1])
    end
end
return 1
