local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
return {ledger(), first[1] and first[1][1] or false, tonumber(redis.call('HGET', counts, 'bytes') or 0)}
