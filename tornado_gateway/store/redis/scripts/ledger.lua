-- `ledger_of` returns the ledger of a namespace as it is sent to the caller: the epoch, the sequence number, the waiting, dead
-- and lost events; and the bytes of the waiting ones. The argument is the ledger of the caller: the epoch, the sequence number
-- and the waiting and dead events of its last reply, and the name of a new epoch. A missing epoch, or a
-- sequence number below that of the caller, shows that Redis has lost data. The first caller that notices it begins a new
-- epoch, and gets the number of missing events.
local SEQUENCE, WAITING, DEAD = 2, 3, 4
local function total(stream)  -- of a stream whose counter is gone
    local events, after, last = 0, '-', nil
    while true do
        local page = redis.call('XRANGE', stream, after, '+', 'COUNT', 1000)
        for _, entry in ipairs(page) do
            if entry[1] ~= last then events = events + tonumber(entry[2][2]) end
        end
        if #page < 1000 then return events end
        after, last = page[#page][1], page[#page][1]
    end
end
local function left(stored, number, stream)
    if not stored then return total(stream) end
    return number ~= 0 and redis.call('XLEN', stream) == 0 and 0 or number
end
local function ledger_of(events, counts, letters, argument)
    local known_epoch, known_sequence = string.match(argument, '^(%S+) (%S+)')
    known_sequence = tonumber(known_sequence)
    local stored = redis.call('HMGET', counts, 'epoch', 'sequence', 'waiting', 'dead', 'bytes')
    local epoch, sequence, bytes = stored[1], tonumber(stored[2] or 0), tonumber(stored[5] or 0)
    local waiting, dead = tonumber(stored[3] or 0), tonumber(stored[4] or 0)
    local found = {epoch or '-', sequence, waiting, dead, 0}
    local waiting_left, dead_left = left(stored[3], waiting, events), left(stored[4], dead, letters)
    if known_epoch ~= '-' and (not epoch or (epoch == known_epoch and sequence < known_sequence)) then
        local known_waiting, known_dead = string.match(argument, '^%S+ %S+ (%S+) (%S+)')
        waiting, dead = math.max(waiting, tonumber(known_waiting)), math.max(dead, tonumber(known_dead))
        epoch = false
    end
    local lost = math.max(0, waiting - waiting_left) + math.max(0, dead - dead_left)
    if epoch and lost == 0 then return found, bytes end
    epoch, sequence = epoch or string.match(argument, '%S+$'), math.max(sequence, known_sequence)
    local is_full = type(redis.pcall('HSET', counts,
        'epoch', epoch, 'sequence', sequence, 'waiting', waiting_left, 'dead', dead_left)) == 'table'
    if is_full then return found, bytes end  -- the loss is counted when it can be noted
    return {epoch, sequence, waiting_left, dead_left, lost}, bytes
end
