-- release_held: give back what a worker holds but does not name.
-- Guarantee: to the job's own place, uncounted, or counted as lost where it had started and max_lost is not 0; a job with a cancel requested becomes
--   cancelled.
-- KEYS: meta (hash), canary (none)
-- ARGV: worker, named (msgpack: [id...]), min_age_ms, limit, max_lost, retention_ms, failed_retention_ms, started (msgpack: [id...] or nil for all)
-- Returns: number of jobs given back
-- Transitions: running -release-> queued, running -lapse-> queued, running -poison-> failed, running -cancel-> cancelled
-- Flags: allow-oom
-- Uses: time, job, place_names, place, lose
local worker, min_age_ms, limit, max_lost = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local retention = {ms = tonumber(ARGV[6]), failed_ms = tonumber(ARGV[7])}
local named = {}
for _, id in ipairs(cmsgpack.unpack(ARGV[2])) do
  named[id] = true
end
local started_ids, started = cmsgpack.unpack(ARGV[8]), {}
for _, id in ipairs(started_ids or {}) do
  started[id] = true
end
local given_back = 0

local function give_back(id)
  local job = load(id)
  if job.status ~= 'running' or job.worker ~= worker then
    redis.call('ZREM', K.running(worker), id)
    return
  end
  -- Without a least age all of it, also what was claimed before the clock went back.
  if min_age_ms > 0 and now - tonumber(job.started or 0) < min_age_ms then
    return
  end
  if max_lost > 0 and (not started_ids or started[id]) then
    lose(id, job, max_lost, retention)
  else
    local changes = {}
    record(id, job, changes, 'released')
    if job.cancel then
      finish(id, job, 'cancelled', changes, retention)
    else
      move(id, job, 'queued', job.seq, changes)
    end
  end
  given_back = given_back + 1
end

for _, id in ipairs(redis.call('ZRANGE', K.running(worker), 0, -1)) do
  if not named[id] and given_back < limit then
    -- A damaged job must not stop the rest; the auditor names it.
    pcall(give_back, id)
  end
end
flush()
return given_back
