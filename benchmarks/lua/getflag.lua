-- getFlag of a new visitor. Arguments: first number, number of features to ask for in turn, query (or none)
local common = require "common"

common.posts(function(number, plan, features, query)
  return "/server-side/getFlag" .. (query or ""), '{"featureKey":"feature-' .. number % features .. '","userId":"visitor-' ..
    common.text(number) .. '","customVariables":{"plan":"' .. plan .. '","age":33}}'
end)
