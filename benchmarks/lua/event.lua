-- /events/t as an SDK sends it, each event of another visitor, at another time, and with another random number.
-- Arguments: first number, account id, SDK key
local common = require "common"
local headers = { ["Content-Type"] = "application/json" }
local number, path, rest, key

function init(args)
  number, key = common.first(args), args[3]
  path = "/events/t?en=vwo_variationShown&a=" .. args[2] .. "&env=" .. key .. "&eTime="
  rest = "&p=FS&visitor_ua=&visitor_ip=&sn=vwo-fme-node-sdk&sv=1.35.0"
end

function request()
  number = number + 1
  local digits = string.format("%016.0f", number)
  local visitor = "0123456789ABCDEF" .. digits
  local seconds = 1700000000 + number % 1000000
  local time = string.format("%d%03d", seconds, number % 1000)
  local body = '{"d":{"msgId":"' .. visitor .. "-" .. time .. '","visId":"' .. visitor ..
    '","sessionId":' .. seconds .. ',"event":{"props":{"vwo_sdkName":"vwo-fme-node-sdk","vwo_sdkVersion":"1.35.0",' ..
    '"vwo_envKey":"' .. key .. '","id":1001,"variation":"2","isFirst":1},"name":"vwo_variationShown",' ..
    '"time":' .. time .. '},"visitor":{"props":{"vwo_fs_environment":"' .. key .. '"}}}}'
  return wrk.format("POST", path .. time .. "&random=0." .. digits .. rest, headers, body)
end
