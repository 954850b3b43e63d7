-- reap: give back jobs whose lease lapsed, and set wake-ups again where work waits.
-- Guarantee: after a gap in reaping or a clock that went back nothing is reaped for the longest lease in use, so that an outage, a
--   clock step or a failover does not take all leases at once.
-- KEYS: meta (hash), canary (none)
-- ARGV: limit, max_lost, lease_ms (where none is known), retention_ms, failed_retention_ms
-- Returns: [more 0|1, jobs: [id, status]...]; more where the call ended before all that lapsed was seen
-- Transitions: running -lapse-> queued, running -poison-> failed, running -cancel-> cancelled
-- Flags: allow-oom
-- Uses: time, job, place_names, place, lose
local limit, max_lost, usual_lease_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local retention = {ms = tonumber(ARGV[4]), failed_ms = tonumber(ARGV[5])}
local GAP_MS, LEASE_KEPT_MS, LOOKS, QUEUES_LOOKED_AT = 5000, 600000, 1000, 10

-- A worker may have died between taking a marker and its claim. Bounded by the queues that hold work.
for _, member in ipairs(redis.pcall('ZRANGE', K.ready, 0, -1)) do
  local queue = string.match(member, '^(.*):%l+$')
  if queue then
    set_marker(queue, true)
  end
end

-- Who has settled all its jobs stays in `leases` until it is looked at.
local function runs_any()
  for _, worker in ipairs(redis.call('ZRANGE', K.leases, 0, -1)) do
    if redis.call('EXISTS', K.running(worker)) == 1 then
      return true
    end
  end
  return false
end

local last = redis.call('HMGET', K.meta, 'swept_at', 'reap_from', 'lease', 'lease_at')
local gap = last[1] and now - tonumber(last[1])
local reap_from = tonumber(last[2] or 0)
local lease_ms, lease_at = tonumber(last[3]) or usual_lease_ms, tonumber(last[4])
if not gap or gap > GAP_MS or gap < 0 then
  -- Where nothing runs, nobody needs time to renew.
  reap_from = runs_any() and now + lease_ms or 0
  if lease_at then
    redis.call('HSET', K.meta, 'lease_at', now)
  end
elseif lease_at and now > lease_at + 2 * lease_ms + LEASE_KEPT_MS then
  redis.call('HDEL', K.meta, 'lease', 'lease_at')
end
redis.call('HSET', K.meta, 'swept_at', now, 'reap_from', reap_from)
if now < reap_from then
  return {0, {}}
end

-- What is not in `ready` is never claimed. Should that have been lost, each queue's part is written anew when its turn comes.
for _, queue in ipairs(redis.pcall('SRANDMEMBER', K.queues, QUEUES_LOOKED_AT)) do
  for _, priority in ipairs(PRIORITIES) do
    touch({queue = queue, priority = priority})
  end
end

local answers, taken = {}, 0
local worker
local function give_back(id, text)
  taken = taken + 1
  local job = load(id, text)
  if job.status ~= 'running' or job.worker ~= worker then
    redis.call('ZREM', K.running(worker), id)
  else
    lose(id, job, max_lost, retention)
    answers[#answers + 1] = {id, job.status}
  end
end

-- Give back what of the worker lapsed up to a score, then say when to look at it again.
local function look(up_to)
  local key = K.running(worker)
  sweep(key, limit - taken, give_back, up_to)
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if first[2] then
    redis.call('ZADD', K.leases, first[2], worker)
  else
    redis.call('ZREM', K.leases, worker)
  end
end

-- The lease that lapsed first goes first, whoever held it: so nobody's jobs wait for all those of another. A worker is left when it is
-- the turn of the next one, and is looked at again when it is its own.
local more = 0
for looks = 1, LOOKS + limit do
  local first = redis.call('ZRANGE', K.leases, 0, 1, 'WITHSCORES')
  if not first[1] or tonumber(first[2]) > now then
    more = 0
    break
  end
  more = 1
  if taken >= limit then
    break
  end
  worker = first[1]
  local up_to = now
  if first[4] and tonumber(first[4]) <= now then
    up_to = first[4] == first[2] and first[4] or '(' .. first[4]
  end
  if not pcall(look, up_to) then
    -- Its index is damaged: it must not stop the rest; the auditor names it.
    redis.call('ZADD', K.leases, now + 60000, worker)
  end
end
flush()
return {more, answers}
