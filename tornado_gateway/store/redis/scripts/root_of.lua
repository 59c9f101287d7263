-- The root of an id: the last one in its chain of aliases. A cycle, which version 0.1 could store, ends.
local MOST_STEPS = 64
local function root_of(id)
    local root, seen = id, {[id] = true}
    for _ = 1, MOST_STEPS do
        local user = redis.call('HGET', KEYS[1], root)
        if not user or seen[user] then break end
        root = user
        seen[user] = true
    end
    return root
end
