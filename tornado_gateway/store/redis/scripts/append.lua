-- Append to several namespaces. KEYS: events, counts and dead of each. ARGV[1] is 0; then follow, for each of them, the
-- number of its arguments, its last moment, its ledger, its number of events, and its chunks. A namespace that fails has
-- its error in the reply, and does not concern the others. If all fail, as with a full Redis, the reply is the error.
local function append(place, first, last)
    if late(ARGV[first]) then return late(ARGV[first]) end
    local events, counts = KEYS[place], KEYS[place + 1]
    local ledger = ledger_of(events, counts, KEYS[place + 2], ARGV[first + 1])
    -- The counters come first: a full or read-only Redis rejects them, and then nothing has been written.
    redis.call('HINCRBY', counts, 'waiting', ARGV[first + 2])
    redis.call('HINCRBY', counts, 'sequence', 1)
    local bytes = 0
    for i = first + 3, last, 5 do
        redis.call('XADD', events, '*',
            'n', ARGV[i], 'q', ARGV[i + 1], 'b', ARGV[i + 2], 'a', ARGV[i + 3], 'k', ARGV[i + 4])
        bytes = bytes + #ARGV[i + 2]
    end
    redis.call('HINCRBY', counts, 'bytes', bytes)
    return ledger()
end
local replies, first, error = {}, 2, nil
for place = 1, #KEYS, 3 do
    local last = first + tonumber(ARGV[first])
    local is_done, reply = pcall(append, place, first + 1, last)
    if not is_done and type(reply) ~= 'table' then reply = redis.error_reply(tostring(reply)) end
    if reply.err then error = error or reply end
    replies[#replies + 1] = reply
    first = last + 1
end
for _, reply in ipairs(replies) do
    if not reply.err then return replies end
end
return error
