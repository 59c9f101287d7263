if (redis.call('HGET', KEYS[1], ARGV[1]) or '0') ~= ARGV[3] then return 0 end
redis.call('HINCRBY', KEYS[1], ARGV[1], 1)
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
return 1
