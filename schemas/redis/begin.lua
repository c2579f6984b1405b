-- Begins a new incarnation: all rows of the old one are out of sight at once, and die by their time to live.
-- KEYS: the live incarnation, the hash of applied positions. ARGV: the channel, the new incarnation, then for each
-- position its field and its offset.
redis.call('SET', KEYS[1], ARGV[2])
redis.call('DEL', KEYS[2])
local news = { ARGV[2] }
for i = 3, #ARGV, 2 do
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 1])
    news[#news + 1] = ARGV[i] .. '=' .. ARGV[i + 1]
end
redis.call('PUBLISH', ARGV[1], table.concat(news, ' '))
return 1
