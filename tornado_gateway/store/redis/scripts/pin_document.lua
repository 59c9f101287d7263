-- ARGV[4] is the duration in milliseconds, or empty: the pin ends by the clock of Redis, which all machines share.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local ends = ''
if ARGV[4] ~= '' then
    local clock = redis.call('TIME')
    ends = string.format('%.0f', clock[1] * 1000 + math.floor(clock[2] / 1000) + tonumber(ARGV[4]))
end
redis.call('HSET', KEYS[1], 'body', ARGV[2], 'pin', ARGV[3], 'pin_ends', ends)
redis.call('HDEL', KEYS[1], 'unpinned_by')
redis.call('HINCRBY', KEYS[1], 'version', 1)
redis.pcall('PUBLISH', KEYS[2], ARGV[1])
return 1
