local counts = redis.call('HMGET', KEYS[2], 'waiting', 'dead', 'bytes')
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
return {tonumber(counts[1] or 0), tonumber(counts[2] or 0), first[1] and first[1][1] or false, tonumber(counts[3] or 0)}
