for _, name in ipairs({KEYS[1], KEYS[2]}) do
    if redis.call('XLEN', name) > 0 then return 0 end
end
return redis.call('DEL', KEYS[1], KEYS[2], KEYS[3], KEYS[4])
