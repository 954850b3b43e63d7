-- Decide about unique keys. The record of a key only says who to ask: the job itself tells whether it still holds it, so that a
-- record that somebody forgot locks nothing out.

-- Return the job that holds a key, with `id`; nil when the key is free. One that is gone and whose time is not over has
-- `status` and `created` alone.
local function holder_of(digest)
  local last, id, created, status = locked_by(digest)
  if not id then
    return nil
  end
  local job = load(id)
  job.id = id
  if job.status then
    local own, kept_until = unique_of(job)
    if own == digest and (last > now or is_bound(job, kept_until)) then
      return job
    end
  elseif last > now and status ~= '' then
    return {id = id, status = status, created = created}
  end
  return nil
end
