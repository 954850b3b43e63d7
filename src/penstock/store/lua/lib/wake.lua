-- Wake one worker, whatever it waits for; the list is bounded and goes with its worker.
local function wake(worker)
  local key = K.wake(worker)
  push_signal(key, '1')
  redis.call('LTRIM', key, -16, -1)
  redis.call('EXPIRE', key, 120)
end
