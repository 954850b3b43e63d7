-- pause_schedule: stop or resume the ticks of a schedule.
-- Guarantee: once it is paused no tick starts a job; a resume holds only for the revision and tick that it was computed from.
-- KEYS: meta (hash), canary (none)
-- ARGV: name, paused 0|1, revision that stands ('' when pausing), next tick that stands (the same), next tick from now on ('' for none)
-- Returns: [done, field, value, ...], [moved] or [missing]
-- Transitions: none
-- Flags: allow-oom
-- Uses: time, schedule
local name, revision, expected, at = ARGV[1], ARGV[3], ARGV[4], ARGV[5]
local key = K.schedule(name)
local standing = redis.call('HMGET', key, 'definition', 'revision', 'next', 'paused')
if not standing[1] then
  return {'missing'}
end
if ARGV[2] == '1' then
  redis.call('ZREM', K.schedule_due, name)
  redis.call('HSETNX', key, 'paused', now)
elseif standing[4] then
  if standing[2] ~= revision or (standing[3] or '') ~= expected then
    return {'moved'}
  end
  if at == '' then
    redis.call('HDEL', key, 'next')
  else
    tick_next(name, at)
    redis.call('HSET', key, 'next', at)
  end
  redis.call('HDEL', key, 'paused')
end
local answer = redis.call('HGETALL', key)
table.insert(answer, 1, 'done')
return answer
