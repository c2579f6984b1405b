-- Publishes a batch of one partition: writes each view's newer rows, then advances the position that covers them.
-- KEYS: the views' positions, the same number of sets of rows ahead of Postgres, then the rows.
-- ARGV: the channel, the partition, the number of positions, the rows' time to live in seconds; for each position its
-- view, the expected value ('' if there is none), the new value, the offset of the new value, and the offset that
-- Postgres shows ('' if unknown); for each row the number of its view's position, its version and its value, which
-- begins with the version.
-- Returns 0, or the sum of 2^(n-1) over the positions n with an unexpected value, whose views were not written.
local count = tonumber(ARGV[3])
local stands = redis.call('MGET', unpack(KEYS, 1, count))
local others, sum = {}, 0
local positions, news = {}, { ARGV[2] }
for i = 1, count do
    local view, expected, shown = unpack(ARGV, 5 * i, 5 * i + 2)
    if (stands[i] or '') ~= expected then
        others[i] = true
        sum = sum + 2 ^ (i - 1)
    elseif shown ~= expected then
        positions[#positions + 1] = KEYS[i]
        positions[#positions + 1] = shown
        news[#news + 1] = view .. '=' .. shown
    end
end
for i = 2 * count + 1, #KEYS do
    local row = 5 * count + 5 + 3 * (i - 2 * count - 1)
    local place, version = tonumber(ARGV[row]), tonumber(ARGV[row + 1])
    if not others[place] then
        local standing = tonumber(string.match(redis.call('GETRANGE', KEYS[i], 0, 20), '^%d+') or '-1')
        if version > standing then
            redis.call('SET', KEYS[i], ARGV[row + 2], 'EX', ARGV[4])
        elseif version == standing then
            redis.call('EXPIRE', KEYS[i], ARGV[4])
        end
        if (tonumber(ARGV[5 * place + 4]) or -2) < tonumber(ARGV[5 * place + 3]) then
            redis.call('ZADD', KEYS[count + place], ARGV[5 * place + 3], KEYS[i])
        end
    end
end
for i = 1, count do
    local stored = ARGV[5 * i + 4]
    if stored ~= '' and not others[i] then
        redis.call('ZREMRANGEBYSCORE', KEYS[count + i], '-inf', stored)
        redis.call('ZADD', KEYS[count + i], 'GT', stored, '')
    end
end
if #positions > 0 then
    redis.call('MSET', unpack(positions))
    redis.call('PUBLISH', ARGV[1], table.concat(news, ' '))
end
return sum
