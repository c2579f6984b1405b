-- Moves applied positions, if they are what their writer last wrote. It is sent behind the rows that they cover: with
-- their deadline, so that no position moves behind rows that came too late.
-- KEYS: the live incarnation, the hash of applied positions. ARGV: the channel, the deadline in ms of this server's
-- clock, the incarnation that is expected to live, then for each position its field, the offset that is expected (''
-- where absent) and the new one.
-- Returns 1, 0 when something differed, or -1 when the deadline had passed; then nothing was written.
local time = redis.call('TIME')
if time[1] * 1000 + math.floor(time[2] / 1000) > tonumber(ARGV[2]) then
    return -1
end
if redis.call('GET', KEYS[1]) ~= ARGV[3] then
    return 0
end
for i = 4, #ARGV, 3 do
    if (redis.call('HGET', KEYS[2], ARGV[i]) or '') ~= ARGV[i + 1] then
        return 0
    end
end
local news = { ARGV[3] }
for i = 4, #ARGV, 3 do
    redis.call('HSET', KEYS[2], ARGV[i], ARGV[i + 2])
    news[#news + 1] = ARGV[i] .. '=' .. ARGV[i + 2]
end
redis.call('PUBLISH', ARGV[1], table.concat(news, ' '))
return 1
