-- getFlag of a new visitor with an address and a user agent.
-- Arguments: first number, number of features, file of networks, file of user agents
local common = require "common"
local headers = { ["Content-Type"] = "application/json" }
local number, features, address, agents

function init(args)
  number, features = common.first(args), tonumber(args[2])
  address, agents = common.addresses(args[3]), common.lines(args[4])
end

function request()
  number = number + 1
  local body = '{"featureKey":"feature-' .. number % features .. '","userId":"visitor-' .. common.text(number) ..
    '","ipAddress":"' .. address(number) .. '","userAgent":"' .. agents[number % #agents + 1] ..
    '","customVariables":{"plan":"gold","age":33}}'
  return wrk.format("POST", "/server-side/getFlag", headers, body)
end
