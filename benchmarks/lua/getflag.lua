-- getFlag of a new visitor. Arguments: first number, number of features to ask for in turn
local common = require "common"

common.posts(function(number, plan, features)
  return "/server-side/getFlag", '{"featureKey":"feature-' .. number % features .. '","userId":"visitor-' ..
    common.text(number) .. '","customVariables":{"plan":"' .. plan .. '","age":33}}'
end)
