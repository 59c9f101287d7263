-- OFREP's evaluation of all flags by visitors that have them already.
-- Arguments: first number, file of ETags and bodies in turn
local common = require "common"
local requests, number = {}, 0

function init(args)
  local lines = common.lines(args[2])
  for place = 1, #lines, 2 do
    local headers = { ["Content-Type"] = "application/json", ["If-None-Match"] = lines[place] }
    requests[#requests + 1] = wrk.format("POST", "/ofrep/v1/evaluate/flags", headers, lines[place + 1])
  end
end

function request()
  number = number + 1
  return requests[number % #requests + 1]
end
