-- Delete the consumer if it holds no chunks; otherwise others may claim them at once.
local pending = redis.pcall('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2])
if pending.err or #pending == 0 then
    redis.pcall('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
    return redis.call('ZREM', KEYS[2], ARGV[2])
end
return redis.call('ZADD', KEYS[2], 0, ARGV[2])
