-- A chunk counts only if it was still there: its consumer may have been considered dead, and another one may have settled it.
local ledger = ledger_of(KEYS[1], KEYS[2], KEYS[3], ARGV[#ARGV])
local at = 2
local function next_argument()
    at = at + 1
    return ARGV[at]
end
local waiting, dead, bytes = 0, 0, 0
for _ = 1, tonumber(next_argument()) do
    local id, count, size = next_argument(), tonumber(next_argument()), tonumber(next_argument())
    redis.call('XACK', KEYS[1], ARGV[2], id)
    if redis.call('XDEL', KEYS[1], id) == 1 then
        waiting = waiting - count
        bytes = bytes - size
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
ledger.waiting = redis.call('HINCRBY', KEYS[2], 'waiting', waiting)
-- Chunks of earlier versions were stored without being counted in bytes.
if ledger.waiting > 0 then redis.call('HINCRBY', KEYS[2], 'bytes', bytes) else redis.call('HDEL', KEYS[2], 'bytes') end
ledger.dead = redis.call('HINCRBY', KEYS[2], 'dead', dead)
ledger.sequence = redis.call('HINCRBY', KEYS[2], 'sequence', 1)
return reply_of(ledger)
