-- getFlags of all features, of a new visitor. Argument: first number
local common = require "common"

common.posts(function(number, plan)
  return "/server-side/getFlags", '{"userId":"visitor-' .. common.text(number) .. '","customVariables":{"plan":"' ..
    plan .. '","age":33}}'
end)
