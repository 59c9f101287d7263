-- Return the root of each id; false for an id that is not an alias.
local roots = {}
for i, id in ipairs(ARGV) do
    local root = root_of(id)
    roots[i] = root ~= id and root or false
end
return roots
