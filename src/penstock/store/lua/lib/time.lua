-- Tell the time by the server's clock alone, in Unix ms.
local function read_clock()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local now = read_clock()
