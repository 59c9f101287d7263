-- /get-user-details as an SDK asks it.
-- Arguments: first number, file of networks, file of user agents (percent-encoded)
local common = require "common"
local number, address, agents

function init(args)
  number, address, agents = common.first(args), common.addresses(args[2]), common.lines(args[3])
end

function request()
  number = number + 1
  local query = "?userAgent=" .. agents[number % #agents + 1] .. "&ipAddress=" .. address(number)
  return wrk.format("GET", "/get-user-details" .. query)
end
