-- delete_schedule: remove a schedule, damaged or not.
-- Guarantee: no tick of it starts a job any more; its jobs stay.
-- KEYS: meta (hash), canary (none)
-- ARGV: name
-- Returns: 1 when there was one, else 0
-- Transitions: none
-- Flags: allow-oom
-- Uses: time
local name = ARGV[1]
redis.call('ZREM', K.schedule_due, name)
local listed = redis.call('ZREM', K.schedules, name)
return math.max(listed, redis.call('DEL', K.schedule(name)))
