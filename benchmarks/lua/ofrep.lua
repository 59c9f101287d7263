-- OFREP's evaluation; every other visitor is in the experiment's segment.
-- Arguments: first number, number of features to ask for in turn (0: all flags in one request), number of visitors;
-- without it, nobody has asked for a visitor before.
local common = require "common"
local headers = { ["Content-Type"] = "application/json" }
local number, features, visitors

function init(args)
  number, features, visitors = common.first(args), tonumber(args[2]), tonumber(args[3] or 2 ^ 53)
end

function request()
  number = number + 1
  local plan = number % 2 == 0 and "gold" or "none"
  local key = features > 0 and "/feature-" .. number % features or ""
  local body = '{"context":{"targetingKey":"visitor-' .. common.text(number % visitors) .. '","plan":"' .. plan .. '","age":33}}'
  return wrk.format("POST", "/ofrep/v1/evaluate/flags" .. key, headers, body)
end
