-- due_schedules: return the schedules whose next tick has come.
-- Guarantee: harmless to repeat; a damaged schedule is put off for a minute, and an entry that its hash does not agree with is set
--   right.
-- KEYS: meta (hash), canary (none)
-- ARGV: limit, bytes (stop above so many)
-- Returns: [now, next tick of all or '', [name, [field, value, ...]]...]
-- Transitions: none
-- Flags: allow-oom
-- Uses: time, job, place_names, place
local limit, bytes_left = tonumber(ARGV[1]), tonumber(ARGV[2])
local found = {}

local function take(name)
  local key = K.schedule(name)
  local standing = redis.call('HMGET', key, 'next', 'paused')
  if not standing[1] or standing[2] then
    redis.call('ZREM', K.schedule_due, name)
  elseif tonumber(standing[1]) > now then
    redis.call('ZADD', K.schedule_due, standing[1], name)
  elseif #found == 0 or bytes_left > 0 then
    bytes_left = bytes_left - redis.call('HSTRLEN', key, 'definition')
    if #found == 0 or bytes_left > 0 then
      found[#found + 1] = {name, redis.call('HGETALL', key)}
    end
  end
end

sweep(K.schedule_due, limit, take)
local first = redis.call('ZRANGE', K.schedule_due, 0, 0, 'WITHSCORES')
return {now, first[2] or '', found}
