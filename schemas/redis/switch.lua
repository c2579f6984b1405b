-- Puts another incarnation in the place of the live one, which it shares its applied positions with.
-- KEYS: the live incarnation. ARGV: the channel, the incarnation that is expected to live, the new one.
-- Returns 1, or 0 when another one lives and nothing was written.
if redis.call('GET', KEYS[1]) ~= ARGV[2] then
    return 0
end
redis.call('SET', KEYS[1], ARGV[3])
redis.call('PUBLISH', ARGV[1], ARGV[3])
return 1
