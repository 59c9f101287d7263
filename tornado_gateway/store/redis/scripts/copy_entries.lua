-- ARGV: the counter's name; of each entry the number of its words, and these: n, its number of events, and more.
local at, events, bytes = 2, 0, 0
while at <= #ARGV do
    local size = tonumber(ARGV[at])
    redis.call('XADD', KEYS[1], '*', unpack(ARGV, at + 1, at + size))
    events = events + tonumber(ARGV[at + 2])
    bytes = bytes + #ARGV[at + 6]
    at = at + 1 + size
end
redis.call('HINCRBY', KEYS[2], ARGV[1], events)
if ARGV[1] == 'waiting' then redis.call('HINCRBY', KEYS[2], 'bytes', bytes) end
return events
