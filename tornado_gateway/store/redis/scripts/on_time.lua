-- ARGV[1] is the last moment, in the server's milliseconds, at which the caller still waits; 0 if unknown.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
if tonumber(ARGV[1]) > 0 and now > tonumber(ARGV[1]) then return redis.error_reply('LATE ' .. now) end
