if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[1], 'saved_at', ARGV[2], 'body', ARGV[3])
if ARGV[5] then redis.call('HSET', KEYS[1], 'latest', ARGV[5]) end
if ARGV[6] then redis.call('HSET', KEYS[1], 'pin', ARGV[6], 'pin_ends', ARGV[7]) end
redis.pcall('PUBLISH', KEYS[2], ARGV[4])
return 1
