-- The counters come first: a full or read-only Redis rejects them, and then nothing has been written.
redis.call('HINCRBY', KEYS[2], 'waiting', ARGV[2])
redis.call('HINCRBY', KEYS[2], 'sequence', 1)
local bytes = 0
for i = 3, #ARGV - 1, 5 do
    redis.call('XADD', KEYS[1], '*',
        'n', ARGV[i], 'q', ARGV[i + 1], 'b', ARGV[i + 2], 'a', ARGV[i + 3], 'k', ARGV[i + 4])
    bytes = bytes + #ARGV[i + 2]
end
redis.call('HINCRBY', KEYS[2], 'bytes', bytes)
return ledger()
