-- OFREP's evaluation. Arguments: first number, number of features to ask for in turn (0: all flags in one request), number
-- of visitors; without it, all are new.
local common = require "common"

common.posts(function(number, plan, features, visitors)
  local key = features > 0 and "/feature-" .. number % features or ""
  local visitor = visitors and number % visitors or number
  return "/ofrep/v1/evaluate/flags" .. key, '{"context":{"targetingKey":"visitor-' .. common.text(visitor) ..
    '","plan":"' .. plan .. '","age":33}}'
end)
