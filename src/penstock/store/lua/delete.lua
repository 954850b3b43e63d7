-- delete: remove final jobs with all their keys.
-- Guarantee: a job that is not final is left as it is; a unique key that the job still holds is free.
-- KEYS: meta (hash), canary (none)
-- ARGV: ids (msgpack: [id...])
-- Returns: per id [done|conflict|missing, status or '', ''] or [error, text]
-- Transitions: none
-- Flags: allow-oom
-- Uses: time, job, place_names, place
local ids = cmsgpack.unpack(ARGV[1])

local function delete_one(id)
  local job = load(id)
  if not job.status then
    return {'missing', '', ''}
  end
  if PLACES[job.status] ~= 'final' then
    return {'conflict', job.status, ''}
  end
  -- Read before the first write: a job whose unique key cannot be read must not lose its place and stay.
  local digest = unique_of(job)
  leave(id, job, job.status, job['until'])
  if digest then
    let_go(id, job, true)
  end
  remove_job(id, job)
  return {'done', job.status, ''}
end

local answers = {}
for index = 1, #ids do
  answers[index] = guarded(delete_one, ids[index])
end
flush()
return answers
