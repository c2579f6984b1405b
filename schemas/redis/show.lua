-- Shows a batch of one partition: puts each view's rows where they are newer, then moves the position that covers them.
-- KEYS: the views' positions, then the rows. ARGV: the channel, the partition, the number of positions, seconds for rows to
-- live; for each position its view, what is expected to stand there ('': nothing) and what is to; for each row the number of
-- its view's position, its version and its value, which begins with the version.
-- Returns 0, or the sum of 2^(n-1) of the positions n at which something else was found: of these views nothing was written.
local count = tonumber(ARGV[3])
local stands = redis.call('MGET', unpack(KEYS, 1, count))
local others, sum = {}, 0
local positions, news = {}, { ARGV[2] }
for i = 1, count do
    local shown = ARGV[3 * i + 4]
    if (stands[i] or '') == ARGV[3 * i + 3] then
        positions[#positions + 1] = KEYS[i]
        positions[#positions + 1] = shown
        news[#news + 1] = ARGV[3 * i + 2] .. '=' .. shown
    else
        others[i] = true
        sum = sum + 2 ^ (i - 1)
    end
end
for i = count + 1, #KEYS do
    if not others[tonumber(ARGV[3 * i + 2])] then
        local version = tonumber(ARGV[3 * i + 3])
        local standing = tonumber(string.match(redis.call('GETRANGE', KEYS[i], 0, 20), '^%d+') or '-1')
        if version > standing then
            redis.call('SET', KEYS[i], ARGV[3 * i + 4], 'EX', ARGV[4])
        elseif version == standing then
            redis.call('EXPIRE', KEYS[i], ARGV[4])
        end
    end
end
if #positions > 0 then
    redis.call('MSET', unpack(positions))
    redis.call('PUBLISH', ARGV[1], table.concat(news, ' '))
end
return sum
