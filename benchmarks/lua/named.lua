-- getFlag of a new visitor, whose query names account and SDK key, as that of a thin SDK does.
-- Arguments: first number, number of features to ask for in turn, account id, SDK key
local common = require "common"
local headers = { ["Content-Type"] = "application/json" }
local number, features, path

function init(args)
  number, features = common.first(args), tonumber(args[2])
  path = "/server-side/getFlag?accountId=" .. args[3] .. "&sdkKey=" .. args[4]
end

function request()
  number = number + 1
  local body = '{"featureKey":"feature-' .. number % features .. '","userId":"visitor-' .. common.text(number) ..
    '","customVariables":{"plan":"' .. (number % 2 == 0 and "gold" or "none") .. '","age":33}}'
  return wrk.format("POST", path, headers, body)
end
