-- trackEvent of a visitor that nobody has asked for before.
local common = require "common"
local headers = { ["Content-Type"] = "application/json" }
local number

function init(args) number = common.first(args) end

function request()
  number = number + 1
  local body = '{"eventName":"purchase","userId":"visitor-' .. common.text(number) ..
    '","eventProperties":{"price":49.5,"currency":"EUR"}}'
  return wrk.format("POST", "/server-side/trackEvent", headers, body)
end
