-- Remember the longest lease in use: so long the reaper rests after a gap. What was not seen for long is forgotten by it.
local function note_lease(lease_ms)
  local known = redis.call('HMGET', K.meta, 'lease', 'lease_at')
  local longest, seen = tonumber(known[1]) or 0, tonumber(known[2]) or 0
  if lease_ms > longest or (lease_ms == longest and math.abs(now - seen) > 60000) then
    redis.call('HSET', K.meta, 'lease', lease_ms, 'lease_at', now)
  end
end
