-- cancel: cancel waiting jobs at once; store a request for running ones and wake their workers.
-- Guarantee: the request is stored before anyone is told; a final job is left as it is.
-- KEYS: meta (hash), canary (none)
-- ARGV: ids (msgpack: [id...]), retention_ms, failed_retention_ms
-- Returns: per id [done|requested|conflict|missing, status or '', requested ms or ''] or [error, text]
-- Transitions: queued -cancel-> cancelled, scheduled -cancel-> cancelled, retrying -cancel-> cancelled
-- Flags: allow-oom
-- Uses: time, job, place_names, place, wake
local ids = cmsgpack.unpack(ARGV[1])
local retention = {ms = tonumber(ARGV[2]), failed_ms = tonumber(ARGV[3])}

local function cancel_one(id)
  local job = load(id)
  if not job.status then
    return {'missing', '', ''}
  end
  local place = PLACES[job.status]
  if place == 'final' then
    return {'conflict', job.status, ''}
  end
  if place == 'running' then
    local requested = job.cancel or now
    if not job.cancel then
      job.cancel = requested
      if job.watch then
        notify(id, job, false)
      end
      store(id, job)
      wake(job.worker)
    end
    return {'requested', job.status, requested}
  end
  finish(id, job, 'cancelled', {cancel = now}, retention)
  return {'done', job.status, now}
end

local answers = {}
for index = 1, #ids do
  answers[index] = guarded(cancel_one, ids[index])
end
flush()
return answers
