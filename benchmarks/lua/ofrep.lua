-- OFREP's evaluation of a new visitor.
-- Arguments: first number, number of features to ask for in turn; 0: all flags in one request
local common = require "common"

common.posts(function(number, plan, features)
  local key = features > 0 and "/feature-" .. number % features or ""
  return "/ofrep/v1/evaluate/flags" .. key, '{"context":{"targetingKey":"visitor-' .. common.text(number) ..
    '","plan":"' .. plan .. '","age":33}}'
end)
