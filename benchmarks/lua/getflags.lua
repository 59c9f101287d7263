-- getFlags of all features, of a visitor that nobody has asked for before; every other one is in the segment.
local common = require "common"
local headers = { ["Content-Type"] = "application/json" }
local number

function init(args) number = common.first(args) end

function request()
  number = number + 1
  local plan = number % 2 == 0 and "gold" or "none"
  local body = '{"userId":"visitor-' .. common.text(number) .. '","customVariables":{"plan":"' .. plan ..
    '","age":33}}'
  return wrk.format("POST", "/server-side/getFlags", headers, body)
end
