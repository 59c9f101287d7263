-- getFlag of a new visitor as a thin SDK sends it: with an address and a user agent.
-- Arguments: first number, number of features to ask for in turn
local common = require "common"
local headers = { ["Content-Type"] = "application/json" }
local agent = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) " ..
  "Chrome/130.0.0.0 Safari/537.36"
local number, features

function init(args)
  number, features = common.first(args), tonumber(args[2])
end

function request()
  number = number + 1
  local plan = number % 2 == 0 and "gold" or "none"
  local body = '{"featureKey":"feature-' .. number % features .. '","userId":"visitor-' .. common.text(number) ..
    '","userAgent":"' .. agent .. '","ipAddress":"203.0.113.' .. number % 250 ..
    '","customVariables":{"plan":"' .. plan .. '","age":33}}'
  return wrk.format("POST", "/server-side/getFlag", headers, body)
end
