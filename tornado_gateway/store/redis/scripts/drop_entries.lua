-- ARGV: the counter's name; of each entry its id and its number of events.
local events = 0
for i = 2, #ARGV, 2 do
    if redis.call('XDEL', KEYS[1], ARGV[i]) == 1 then events = events + tonumber(ARGV[i + 1]) end
end
redis.call('HINCRBY', KEYS[2], ARGV[1], -events)
return events
