-- Move the letters between two ids, one page, while they have no more events than the budget (-1: any number).
-- Return the number of moved letters and of their events. Letters of version 0.1 have no account and key.
-- A fifth argument replaces the body, of letters of one event only.
local letters, events = redis.call('XRANGE', KEYS[3], ARGV[1], ARGV[2], 'COUNT', ARGV[3]), 0
local budget, moved = tonumber(ARGV[4]), 0
for _, letter in ipairs(letters) do
    local values = letter[2]
    local body = ARGV[5] or values[6]
    if budget >= 0 and events + tonumber(values[2]) > budget then break end
    if ARGV[5] and tonumber(values[2]) ~= 1 then break end
    redis.call('XADD', KEYS[1], '*',
        'n', values[2], 'q', values[4], 'b', body, 'a', values[10] or '', 'k', values[12] or '')
    redis.call('XDEL', KEYS[3], letter[1])
    redis.call('HINCRBY', KEYS[2], 'waiting', values[2])
    redis.call('HINCRBY', KEYS[2], 'bytes', #body)
    redis.call('HINCRBY', KEYS[2], 'dead', -values[2])
    events = events + tonumber(values[2])
    moved = moved + 1
end
return {moved, events}
