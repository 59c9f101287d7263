-- OFREP's evaluation of a visitor that nobody has asked for before; every other one is in the experiment's segment.
-- Arguments: first number, number of features to ask for in turn; 0: all flags in one request
local common = require "common"
local headers = { ["Content-Type"] = "application/json" }
local number, features

function init(args)
  number, features = common.first(args), tonumber(args[2])
end

function request()
  number = number + 1
  local plan = number % 2 == 0 and "gold" or "none"
  local key = features > 0 and "/feature-" .. number % features or ""
  local body = '{"context":{"targetingKey":"visitor-' .. common.text(number) .. '","plan":"' .. plan .. '","age":33}}'
  return wrk.format("POST", "/ofrep/v1/evaluate/flags" .. key, headers, body)
end
