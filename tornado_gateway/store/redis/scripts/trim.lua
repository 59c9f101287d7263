-- Delete the oldest letters beyond a limit, one page. Return the number of deleted letters and of their events.
local dead, limit = tonumber(redis.call('HGET', KEYS[2], 'dead') or 0), tonumber(ARGV[1])
local letters, events = 0, 0
if dead <= limit then return {0, 0} end
for _, letter in ipairs(redis.call('XRANGE', KEYS[3], '-', '+', 'COUNT', ARGV[2])) do
    if dead - events <= limit then break end
    redis.call('XDEL', KEYS[3], letter[1])
    events = events + tonumber(letter[2][2])
    letters = letters + 1
end
if letters > 0 then redis.call('HINCRBY', KEYS[2], 'dead', -events) end
return {letters, events}
