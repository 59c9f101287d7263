-- getFlag of a new visitor as a thin SDK sends it: with an address and a user agent.
-- Arguments: first number, number of features to ask for in turn
local common = require "common"
local agent = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) " ..
  "Chrome/130.0.0.0 Safari/537.36"

common.posts(function(number, plan, features)
  return "/server-side/getFlag", '{"featureKey":"feature-' .. number % features .. '","userId":"visitor-' ..
    common.text(number) .. '","userAgent":"' .. agent .. '","ipAddress":"203.0.113.' .. number % 250 ..
    '","customVariables":{"plan":"' .. plan .. '","age":33}}'
end)
