-- `ledger_of` returns the function that makes the ledger of a namespace for a reply. The argument is the ledger of the
-- caller: the epoch, the sequence number and the waiting and dead events of its last reply, and the name of a new epoch.
-- A missing epoch, or a sequence number below that of the caller, shows that Redis has lost data. The first caller that
-- notices it begins a new epoch, and gets the number of missing events.
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
local function ledger_of(events, counts, letters, argument)
    local known_epoch, known_sequence, known_waiting, known_dead, new_epoch =
        string.match(argument, '(%S+) (%S+) (%S+) (%S+) (%S+)')
    local function has_written(...) return not (type(redis.pcall('HSET', counts, ...)) == 'table') end  -- a full Redis rejects it
    local function find_lost()
        local epoch, sequence, waiting, dead = unpack(redis.call('HMGET', counts, 'epoch', 'sequence', 'waiting', 'dead'))
        local before_waiting, before_dead = tonumber(waiting or 0), tonumber(dead or 0)
        waiting = not waiting and total(events) or redis.call('XLEN', events) == 0 and 0 or before_waiting
        dead = not dead and total(letters) or redis.call('XLEN', letters) == 0 and 0 or before_dead
        local is_known = epoch and epoch == known_epoch
        if known_epoch ~= '-' and (not epoch or (is_known and tonumber(sequence) < tonumber(known_sequence))) then
            before_waiting = math.max(before_waiting, tonumber(known_waiting))
            before_dead = math.max(before_dead, tonumber(known_dead))
            epoch = false
        end
        local lost = math.max(0, before_waiting - waiting) + math.max(0, before_dead - dead)
        if epoch and lost == 0 then return 0 end
        local is_new = has_written('epoch', epoch or new_epoch, 'sequence', math.max(tonumber(sequence or 0), tonumber(known_sequence)),
            'waiting', waiting, 'dead', dead)
        return is_new and lost or 0
    end
    local lost = find_lost()
    return function()
        local values = redis.call('HMGET', counts, 'epoch', 'sequence', 'waiting', 'dead')
        return {values[1] or '-', tonumber(values[2] or 0), tonumber(values[3] or 0), tonumber(values[4] or 0), lost}
    end
end
