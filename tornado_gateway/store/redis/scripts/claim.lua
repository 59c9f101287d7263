-- Send a heartbeat and, with budgets of events and bytes, claim: first the chunks of dead consumers, then new ones, until
-- the last one reaches or exceeds one of the budgets. Of new ones, a few more may be claimed than the budget of events allows.
local stream, consumers, counts = KEYS[1], KEYS[2], KEYS[3]
local group, me, alive_ms = ARGV[2], ARGV[3], tonumber(ARGV[4])
local gone_before, budget, most = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local max_bytes = tonumber(ARGV[8])
redis.call('ZREM', consumers, '')  -- a write that a full Redis allows; after one it allows all of this script
local alive_until = tonumber(redis.call('ZSCORE', consumers, me) or 0)
redis.call('ZADD', consumers, now + alive_ms, me)
-- A later time is that of a clock that has been set back: it lasts no longer than a new one.
for _, name in ipairs(redis.call('ZRANGEBYSCORE', consumers, '(' .. now + alive_ms, '+inf')) do
    redis.call('ZADD', consumers, now + alive_ms, name)
end
local claimed, events, bytes, largest = {}, 0, 0, 1
local function keep(entry)
    local values = entry[2]
    local count = tonumber(values[2])
    claimed[#claimed + 1] = {entry[1], values[2], values[4], values[6], values[8] or '', values[10] or ''}
    events = events + count
    bytes = bytes + #values[6]
    if count > largest then largest = count end
end
local function wanted() return events < budget and bytes < max_bytes and #claimed < most end
local function take_over(name)
    local pending = redis.pcall('XPENDING', stream, group, '-', '+', 100, name)
    if pending.err or #pending == 0 then
        redis.pcall('XGROUP', 'DELCONSUMER', stream, group, name)
        redis.call('ZREM', consumers, name)
        return
    end
    for _, entry in ipairs(pending) do
        if not wanted() then return end
        local got = redis.call('XCLAIM', stream, group, me, 0, entry[1])
        if got[1] then keep(got[1]) else redis.call('XACK', stream, group, entry[1]) end
    end
end
-- The number of chunks to read at once: as many as fit into the budget if none has more events than those before, and one
-- at first. If all waiting events together have too many bytes, always one.
local function portion()
    if #claimed == 0 or tonumber(redis.call('HGET', counts, 'bytes') or 0) > max_bytes - bytes then return 1 end
    return math.max(1, math.min(most - #claimed, math.floor((budget - events) / largest)))
end
if budget > 0 then
    if gone_before > 0 then gone_before = alive_until > now and now or 0 end
    for _, name in ipairs(redis.call('ZRANGEBYSCORE', consumers, '-inf', gone_before)) do take_over(name) end
    while wanted() do
        local count = portion()
        local got = redis.pcall('XREADGROUP', 'GROUP', group, me, 'COUNT', count, 'STREAMS', stream, '>')
        if got and got.err then
            if not string.find(got.err, 'NOGROUP', 1, true) then return got end
            redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
        elseif got then
            for _, entry in ipairs(got[1][2]) do keep(entry) end
            if #got[1][2] < count then break end
        else
            break
        end
    end
end
return {now, alive_until > now and 1 or 0, claimed}
