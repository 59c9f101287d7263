if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'saved_at', ARGV[1], 'by', ARGV[2])
return 1
