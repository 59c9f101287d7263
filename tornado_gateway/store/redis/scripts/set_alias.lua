-- ARGV: alias, user, the most aliases. Store the alias of the user's root, unless that makes a cycle.
local root = root_of(ARGV[2])
if root == ARGV[1] then return 0 end
if redis.call('HLEN', KEYS[1]) >= tonumber(ARGV[3]) and redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], root)
return 1
