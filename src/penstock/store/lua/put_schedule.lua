-- put_schedule: create or replace a schedule.
-- Guarantee: the same again changes nothing; the next tick stays where the timing does; a pause stays.
-- KEYS: meta (hash), canary (none)
-- ARGV: name, definition (JSON), timing (JSON), first tick, room (how many schedules this partition may hold)
-- Returns: [created|replaced|unchanged, field, value, ...] or [full]
-- Transitions: none
-- Flags: none (refused when out of memory)
-- Uses: time, schedule
local name, definition, timing, first, room = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local key = K.schedule(name)
local standing = redis.call('HMGET', key, 'definition', 'timing', 'next', 'revision', 'paused', 'created')
local code = 'replaced'
if not standing[6] then
  if redis.call('ZCARD', K.schedules) >= room and not redis.call('ZSCORE', K.schedules, name) then
    return {'full'}
  end
  code = 'created'
elseif standing[1] == definition then
  code = 'unchanged'
end
local at = standing[2] == timing and standing[3] or first
-- Again where nothing changes: a damaged index is mended by the next put.
redis.call('ZADD', K.schedules, 0, name)
if not standing[5] then
  tick_next(name, at)
end
if code ~= 'unchanged' then
  -- Never a number that was used before, unless the clock went back over a delete.
  local revision = math.max(now, (tonumber(standing[4]) or 0) + 1)
  redis.call('HSET', key, 'definition', definition, 'timing', timing, 'next', at, 'revision', string.format('%.0f', revision),
    'created', standing[6] or now, 'updated', now)
end
local answer = redis.call('HGETALL', key)
table.insert(answer, 1, code)
return answer
