-- What all loads share: numbers that no other round has used, lists from files, and the result as one line of JSON.
local common = {}

-- wrk hands over what stands behind "--": the first number of this round, then what the script wants.
function common.first(args) return tonumber(args[1]) end

function common.text(number) return string.format("%.0f", number) end

function common.lines(path)
  local lines = {}
  for line in io.lines(path) do lines[#lines + 1] = line end
  return lines
end

-- An address of a network of the location database, or, every other time, one from anywhere: mostly a miss.
function common.addresses(path)
  local networks = {}
  for _, line in ipairs(common.lines(path)) do
    local base, size = line:match("(%d+) (%d+)")
    networks[#networks + 1] = { tonumber(base), tonumber(size) }
  end
  return function(number)
    local turn = math.floor(number / 2)
    if number % 2 == 0 then return common.dotted(16777216 + (turn * 2654435761) % 3741319168) end
    local network = networks[turn % #networks + 1]
    return common.dotted(network[1] + math.floor(turn / #networks) % network[2])
  end
end

function common.dotted(address)
  local a, rest = math.floor(address / 16777216), address % 16777216
  local b, tail = math.floor(rest / 65536), rest % 65536
  return a .. "." .. b .. "." .. math.floor(tail / 256) .. "." .. tail % 256
end

-- A load of POST requests. `make` returns path and body of a request from its number, which no other one has, the
-- visitor's plan, which puts every other visitor in the experiment's segment, and the script's two arguments: a number,
-- and a number or a text.
function common.posts(make)
  local headers = { ["Content-Type"] = "application/json" }
  local number, first, second

  function init(args)
    number, first, second = common.first(args), tonumber(args[2]), tonumber(args[3]) or args[3]
  end

  function request()
    number = number + 1
    local path, body = make(number, number % 2 == 0 and "gold" or "none", first, second)
    return wrk.format("POST", path, headers, body)
  end
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%.6f,"p50_ms":%.3f,"p99_ms":%.3f,"p999_ms":%.3f,"max_ms":%.3f,"errors":%d}\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1000, latency:percentile(99) / 1000,
    latency:percentile(99.9) / 1000, latency.max / 1000,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end

return common
