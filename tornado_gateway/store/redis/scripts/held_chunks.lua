-- Return the chunks that this consumer holds after an id. An entry that has left the stream has only its id.
local got = redis.pcall('XREADGROUP', 'GROUP', ARGV[2], ARGV[3], 'COUNT', ARGV[5], 'STREAMS', KEYS[1], ARGV[4])
if not got or got.err then return {} end
local held = {}
for _, entry in ipairs(got[1][2]) do
    local values = entry[2] or {}
    held[#held + 1] = {entry[1], values[2], values[4], values[6], values[8] or '', values[10] or ''}
end
return held
