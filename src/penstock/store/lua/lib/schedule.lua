-- Keep a schedule's next tick in its hash and in the index of those that tick.
local DUE_SOON_MS = 2000

-- Every loop looks once a second; a tick that comes sooner wakes one.
local function tick_next(name, at)
  redis.call('ZADD', K.schedule_due, at, name)
  if tonumber(at) < now + DUE_SOON_MS and is_silent(K.due) then
    push_signal(K.due, '1')
  end
end
