-- ARGV[1] is the last moment, in the server's milliseconds, at which the caller still waits; 0 if unknown.
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local function late(moment) return tonumber(moment) > 0 and now > tonumber(moment) and redis.error_reply('LATE ' .. now) end
if late(ARGV[1]) then return late(ARGV[1]) end
