-- Versions never repeat, even if Redis lost its data: the saver passes the highest version that it has seen.
local version = math.max(tonumber(redis.call('HGET', KEYS[1], 'version') or 0), tonumber(ARGV[1])) + 1
redis.call('HSET', KEYS[1], 'version', version, 'saved_at', ARGV[2], 'body', ARGV[3], 'by', ARGV[5])
redis.pcall('PUBLISH', KEYS[2], ARGV[4]) -- may be forbidden; readers compare the version as well
return version
