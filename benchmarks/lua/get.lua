-- The same GET again and again. Arguments: first number, path
require "common"
local bytes

function init(args) bytes = wrk.format("GET", args[2]) end

function request() return bytes end
