local ledger, bytes = ledger_of(KEYS[1], KEYS[2], KEYS[3], ARGV[1])
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
return {ledger, first[1] and first[1][1] or false, bytes}
