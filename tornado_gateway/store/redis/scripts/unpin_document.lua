-- ARGV[2] is the pin to remove, or empty for any. Returns -1 if ARGV[3] is not the latest version any more.
local pin = redis.call('HGET', KEYS[1], 'pin')
if not pin or (ARGV[2] ~= '' and pin ~= ARGV[2]) then return 0 end
if (redis.call('HGET', KEYS[1], 'latest') or '') ~= ARGV[3] then return -1 end
if ARGV[5] then redis.call('HSET', KEYS[1], 'body', ARGV[5]) end
redis.call('HSET', KEYS[1], 'unpinned_by', ARGV[4])
redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.call('HDEL', KEYS[1], 'pin', 'pin_ends')
redis.pcall('PUBLISH', KEYS[2], ARGV[1])
return 1
