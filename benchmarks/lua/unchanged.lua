-- OFREP's evaluation of all flags by visitors that have them already.
-- Arguments: first number, file of ETags and bodies in turn
local common = require "common"
local requests, number = {}, 0

-- In a fixed order of headers, as a client sends them. With wrk.format it would be another one in each round, so that the
-- gateway would learn a thousand heads anew.
local function post(etag, body)
  return "POST /ofrep/v1/evaluate/flags HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port ..
    "\r\nContent-Type: application/json\r\nIf-None-Match: " .. etag .. "\r\nContent-Length: " .. #body ..
    "\r\n\r\n" .. body
end

function init(args)
  local lines = common.lines(args[2])
  for place = 1, #lines, 2 do requests[#requests + 1] = post(lines[place], lines[place + 1]) end
end

function request()
  number = number + 1
  return requests[number % #requests + 1]
end
