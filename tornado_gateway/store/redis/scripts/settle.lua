-- ARGV: the group; the number of chunks, of their events and of their bytes, their ids, and the events and bytes of each as
-- text; the dead letters; the remaining chunks; the ledger.
local ledger = ledger_of(KEYS[1], KEYS[2], KEYS[3], ARGV[#ARGV])
local at = 2
local function next_argument()
    at = at + 1
    return ARGV[at]
end
local waiting, dead, bytes = 0, 0, 0
local count, events, size = tonumber(next_argument()), tonumber(next_argument()), tonumber(next_argument())
local first, last, acknowledged = at + 1, at + count, 0
at = last
local facts = next_argument()
local function page(from) return unpack(ARGV, from, math.min(last, from + 999)) end  -- Lua limits the number of arguments
for from = first, last, 1000 do acknowledged = acknowledged + redis.call('XACK', KEYS[1], ARGV[2], page(from)) end
if acknowledged == count then
    for from = first, last, 1000 do redis.call('XDEL', KEYS[1], page(from)) end
    waiting, bytes = waiting - events, bytes - size
else
    -- A chunk counts only if it was still there: its consumer may have been considered dead, and another one may have
    -- settled it.
    for chunk_events, chunk_bytes in string.gmatch(facts, '(%d+) (%d+)') do
        if redis.call('XDEL', KEYS[1], ARGV[first]) == 1 then
            waiting, bytes = waiting - chunk_events, bytes - chunk_bytes
        end
        first = first + 1
    end
end
for _ = 1, tonumber(next_argument()) do
    local count, query, body = next_argument(), next_argument(), next_argument()
    local account, key, reason = next_argument(), next_argument(), next_argument()
    redis.call('XADD', KEYS[3], '*', 'n', count, 'q', query, 'b', body, 'r', reason, 'a', account, 'k', key)
    dead = dead + tonumber(count)
end
for _ = 1, tonumber(next_argument()) do
    local count, query, body = next_argument(), next_argument(), next_argument()
    local account, key = next_argument(), next_argument()
    redis.call('XADD', KEYS[1], '*', 'n', count, 'q', query, 'b', body, 'a', account, 'k', key)
    waiting = waiting + tonumber(count)
    bytes = bytes + #body
end
ledger[WAITING] = redis.call('HINCRBY', KEYS[2], 'waiting', waiting)
-- Chunks of earlier versions were stored without being counted in bytes.
if ledger[WAITING] > 0 then redis.call('HINCRBY', KEYS[2], 'bytes', bytes) else redis.call('HDEL', KEYS[2], 'bytes') end
ledger[DEAD] = redis.call('HINCRBY', KEYS[2], 'dead', dead)
ledger[SEQUENCE] = redis.call('HINCRBY', KEYS[2], 'sequence', 1)
return ledger
