-- Writes rows of an incarnation that is not read yet.
-- KEYS: the rows. ARGV: the time to live in seconds, then for each row its version and its value, which begins with the
-- version.
for i, key in ipairs(KEYS) do
    local standing = tonumber(string.match(redis.call('GETRANGE', key, 0, 20), '^%d+') or '-1')
    if tonumber(ARGV[2 * i]) >= standing then
        redis.call('SET', key, ARGV[2 * i + 1], 'EX', ARGV[1])
    end
end
return 1
