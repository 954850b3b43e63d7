-- extend: renew leases and store progress, each under its token.
-- Guarantee: a stale token renews nothing and writes nothing.
-- KEYS: meta (hash), canary (none)
-- ARGV: items (msgpack: [id, attempt, nonce, progress or '']...), lease_ms
-- Returns: per item [deadline ms, cancel requested 0|1], or [stale], or [error, text]
-- Transitions: none
-- Flags: allow-oom
-- Uses: time, job, place_names, place, lease
local items, lease_ms = cmsgpack.unpack(ARGV[1]), tonumber(ARGV[2])

local function extend_one(item, text)
  local id = item[1]
  local job = load(id, text)
  if job.status ~= 'running' or tonumber(job.attempt) ~= item[2] or job.nonce ~= item[3] then
    return {'stale'}
  end
  local deadline = now + lease_ms
  bound_lease(job.worker, deadline)
  redis.call('ZADD', K.running(job.worker), deadline, id)
  if item[4] ~= '' then
    job.progress = item[4]
    if job.watch then
      notify(id, job, false)
    end
    store(id, job)
  end
  return {deadline, job.cancel and 1 or 0}
end

local answers, ids = {}, {}
for index = 1, #items do
  ids[index] = items[index][1]
end
local texts = read_all(ids)
for index = 1, #items do
  answers[index] = guarded(extend_one, items[index], texts[index])
end
note_lease(lease_ms)
return answers
