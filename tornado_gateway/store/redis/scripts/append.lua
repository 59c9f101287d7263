-- Append to several namespaces. KEYS: events, counts and dead of each. After the last moment follow, for each of them, the
-- number of its arguments, its ledger, and its chunks. A namespace that fails has its error in the reply, and does not concern
-- the others. If all fail, as with a full Redis, the reply is the error.
local function append(place, first, last)
    local events, counts = KEYS[place], KEYS[place + 1]
    local ledger, bytes = ledger_of(events, counts, KEYS[place + 2], ARGV[first])
    local waiting, sequence = ledger[WAITING], ledger[SEQUENCE] + 1
    for i = first + 1, last, 5 do waiting, bytes = waiting + ARGV[i], bytes + #ARGV[i + 2] end
    ledger[WAITING], ledger[SEQUENCE] = waiting, sequence
    -- The counters come first: a full or read-only Redis rejects them, and then nothing has been written.
    redis.call('HSET', counts, 'waiting', waiting, 'sequence', sequence, 'bytes', bytes)
    for i = first + 1, last, 5 do
        redis.call('XADD', events, '*',
            'n', ARGV[i], 'q', ARGV[i + 1], 'b', ARGV[i + 2], 'a', ARGV[i + 3], 'k', ARGV[i + 4])
    end
    return ledger
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
