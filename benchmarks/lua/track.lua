-- trackEvent of a new visitor. Argument: first number
local common = require "common"

common.posts(function(number)
  return "/server-side/trackEvent", '{"eventName":"purchase","userId":"visitor-' .. common.text(number) ..
    '","eventProperties":{"price":49.5,"currency":"EUR"}}'
end)
