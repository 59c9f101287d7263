-- unleash-proxy: a new visitor's flag (POST with its name), or all enabled flags at once (GET).
-- Arguments: first number, number of features, "one" or "all"
local common = require "common"
local number, features, all
local headers = { Authorization = "benchmark", ["Content-Type"] = "application/json" }

function init(args)
  number, features, all = common.first(args), tonumber(args[2]), args[3] == "all"
end

function request()
  number = number + 1
  if all then return wrk.format("GET", "/proxy?userId=visitor-" .. common.text(number), headers) end
  local body = '{"toggles":["feature-' .. number % features .. '"],"context":{"userId":"visitor-' ..
    common.text(number) .. '"}}'
  return wrk.format("POST", "/proxy", headers, body)
end
