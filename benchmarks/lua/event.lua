-- /events/t as an SDK sends it, each event of another visitor.
-- Arguments: first number, account id, SDK key
local common = require "common"
local headers = { ["Content-Type"] = "application/json" }
local number, path, key

function init(args)
  number, key = common.first(args), args[3]
  path = "/events/t?en=vwo_variationShown&a=" .. args[2] .. "&env=" .. key ..
    "&eTime=1700000000000&random=0.5&p=FS&visitor_ua=&visitor_ip=&sn=vwo-fme-node-sdk&sv=1.35.0"
end

function request()
  number = number + 1
  local visitor = "0123456789ABCDEF" .. string.format("%016.0f", number)
  local body = '{"d":{"msgId":"' .. visitor .. '-1700000000000","visId":"' .. visitor ..
    '","sessionId":1700000000,"event":{"props":{"vwo_sdkName":"vwo-fme-node-sdk","vwo_sdkVersion":"1.35.0",' ..
    '"vwo_envKey":"' .. key .. '","id":1001,"variation":"2","isFirst":1},"name":"vwo_variationShown",' ..
    '"time":1700000000000},"visitor":{"props":{"vwo_fs_environment":"' .. key .. '"}}}}'
  return wrk.format("POST", path, headers, body)
end
