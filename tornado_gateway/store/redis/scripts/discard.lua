-- Delete the letters between two ids, one page. Return the number of deleted letters and of their events.
local letters, events = redis.call('XRANGE', KEYS[3], ARGV[1], ARGV[2], 'COUNT', ARGV[3]), 0
for _, letter in ipairs(letters) do
    redis.call('XDEL', KEYS[3], letter[1])
    events = events + tonumber(letter[2][2])
end
if events > 0 then redis.call('HINCRBY', KEYS[2], 'dead', -events) end
return {#letters, events}
