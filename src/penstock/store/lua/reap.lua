-- reap: give back jobs whose lease lapsed, and set wake-ups again where work waits.
-- Guarantee: after a gap in reaping or a clock that went back nothing is reaped for a while, so that an outage, a clock step or a
--   failover does not take all leases at once.
-- KEYS: meta (hash), canary (none)
-- ARGV: limit, max_lost, grace_ms, retention_ms, failed_retention_ms
-- Returns: per job [id, status]
-- Transitions: running -lapse-> queued, running -poison-> failed, running -cancel-> cancelled
-- Flags: allow-oom
-- Uses: time, job, place_names, place, lose
local limit, max_lost, grace_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local retention = {ms = tonumber(ARGV[4]), failed_ms = tonumber(ARGV[5])}
local GAP_MS = 5000

-- A worker may have died between taking a marker and its claim. Bounded by the queues that hold work.
for _, member in ipairs(redis.call('ZRANGE', K.ready, 0, -1)) do
  set_marker(string.match(member, '^(.*):%l+$'), true)
end

local last = redis.call('HMGET', K.meta, 'swept_at', 'reap_from')
local gap = last[1] and now - tonumber(last[1])
local reap_from = tonumber(last[2] or 0)
if not gap or gap > GAP_MS or gap < 0 then
  reap_from = now + grace_ms
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
