-- A chunk counts only if it was still there: its consumer may have been considered dead, and another one may have settled it.
local at = 2
local function next_argument()
    at = at + 1
    return ARGV[at]
end
local waiting, dead = 0, 0
for _ = 1, tonumber(next_argument()) do
    local id, count = next_argument(), tonumber(next_argument())
    redis.call('XACK', KEYS[1], ARGV[2], id)
    if redis.call('XDEL', KEYS[1], id) == 1 then waiting = waiting - count end
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
end
redis.call('HINCRBY', KEYS[2], 'waiting', waiting)
redis.call('HINCRBY', KEYS[2], 'dead', dead)
redis.call('HINCRBY', KEYS[2], 'sequence', 1)
return ledger()
