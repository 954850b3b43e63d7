-- reap: give back jobs whose lease lapsed, and set wake-ups again where work waits.
-- Guarantee: after a gap in reaping or a clock that went back nothing is reaped for the longest lease in use, so that an outage, a
--   clock step or a failover does not take all leases at once.
-- KEYS: meta (hash), canary (none)
-- ARGV: limit, max_lost, lease_ms (where none is known), retention_ms, failed_retention_ms
-- Returns: per job [id, status]
-- Transitions: running -lapse-> queued, running -poison-> failed, running -cancel-> cancelled
-- Flags: allow-oom
-- Uses: time, job, place_names, place, lose
local limit, max_lost, usual_lease_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local retention = {ms = tonumber(ARGV[4]), failed_ms = tonumber(ARGV[5])}
local GAP_MS, LEASE_KEPT_MS = 5000, 600000

-- A worker may have died between taking a marker and its claim. Bounded by the queues that hold work.
for _, member in ipairs(redis.call('ZRANGE', K.ready, 0, -1)) do
  set_marker(string.match(member, '^(.*):%l+$'), true)
end

local last = redis.call('HMGET', K.meta, 'swept_at', 'reap_from', 'lease', 'lease_at')
local gap = last[1] and now - tonumber(last[1])
local reap_from = tonumber(last[2] or 0)
local lease_ms, lease_at = tonumber(last[3]) or usual_lease_ms, tonumber(last[4])
if not gap or gap > GAP_MS or gap < 0 then
  -- Where nothing runs, nobody needs time to renew.
  reap_from = redis.call('ZCARD', K.running) > 0 and now + lease_ms or 0
  if lease_at then
    redis.call('HSET', K.meta, 'lease_at', now)
  end
elseif lease_at and now > lease_at + 2 * lease_ms + LEASE_KEPT_MS then
  redis.call('HDEL', K.meta, 'lease', 'lease_at')
end
redis.call('HSET', K.meta, 'swept_at', now, 'reap_from', reap_from)
if now < reap_from then
  return {}
end

local answers = {}
local function give_back(id)
  local job = load(id, CORE)
  if job.status ~= 'running' then
    redis.call('ZREM', K.running, id)
  else
    lose(id, job, max_lost, retention)
    answers[#answers + 1] = {id, job.status}
  end
end

sweep(K.running, limit, give_back)
flush()
return answers
