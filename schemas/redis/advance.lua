-- Moves applied positions, if they are what their writer last wrote.
-- KEYS: the live incarnation, the hash of applied positions. ARGV: the channel, the incarnation that is expected to
-- live, then for each position its field, the offset that is expected ('' where absent) and the new one.
-- Returns 1, or 0 when something differed and nothing was written.
if redis.call('GET', KEYS[1]) ~= ARGV[2] then
    return 0
end
for i = 3, #ARGV, 3 do
    if (redis.call('HGET', KEYS[2], ARGV[i]) or '') ~= ARGV[i + 1] then
        return 0
    end
end
local news = { ARGV[2] }
for i = 3, #ARGV, 3 do
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 2])
    news[#news + 1] = ARGV[i] .. '=' .. ARGV[i + 2]
end
redis.call('PUBLISH', ARGV[1], table.concat(news, ' '))
return 1
