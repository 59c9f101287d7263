-- Versions never repeat, even if Redis lost its data: the saver passes the highest version that it has seen.
local version = math.max(tonumber(redis.call('HGET', KEYS[1], 'version') or 0), tonumber(ARGV[1])) + 1
local is_pinned = redis.call('HEXISTS', KEYS[1], 'pin')
redis.call('HSET', KEYS[1], 'version', version, 'saved_at', ARGV[2], 'by', ARGV[5], 'latest', ARGV[6])
if is_pinned == 0 then redis.call('HSET', KEYS[1], 'body', ARGV[3]) end
redis.call('HSET', KEYS[3], ARGV[6], version .. ' ' .. ARGV[7])
redis.call('HSET', KEYS[4], ARGV[6], ARGV[8])
for i = 9, #ARGV do -- the oldest versions, which have no room
    redis.call('HDEL', KEYS[3], ARGV[i])
    redis.call('HDEL', KEYS[4], ARGV[i])
end
redis.pcall('PUBLISH', KEYS[2], ARGV[4]) -- may be forbidden; readers compare the version as well
return {version, is_pinned}
