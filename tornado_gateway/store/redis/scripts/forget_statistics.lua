for _, name in ipairs(ARGV) do -- one by one, because Lua limits the number of arguments
  redis.call('HDEL', KEYS[1], name)
  redis.call('HDEL', KEYS[2], name)
end
