-- getFlag of a visitor that nobody has asked for before; every other one is in the experiment's segment
local number = math.floor(os.time() % 1000000) * 10000000
wrk.method = "POST"
function request()
  number = number + 1
  local plan = number % 2 == 0 and "gold" or "none"
  local body = '{"featureKey":"feature-0","userId":"visitor-' .. string.format("%.0f", number) ..
    '","customVariables":{"plan":"' .. plan .. '","age":33}}'
  return wrk.format("POST", "/server-side/getFlag", nil, body)
end
