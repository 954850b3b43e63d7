-- End an attempt whose worker is gone: the job runs again in its own place, or is poisoned, or a cancel is done. Only a death alone
-- poisons: one beside others may have been a neighbour's doing.
local function lose(id, job, max_lost, retention)
  local lost = tonumber(job.lost or 0) + 1
  local changes = {lost = lost}
  record(id, job, changes, 'worker_lost')
  if job.cancel then
    finish(id, job, 'cancelled', changes, retention)
  elseif lost >= max_lost and tonumber(job.alone or 0) == tonumber(job.attempt) then
    changes.reason = 'poisoned'
    finish(id, job, 'failed', changes, retention)
    add(counts, 'poisoned', job.queue, 1)
  else
    move(id, job, 'queued', job.seq, changes)
  end
  add(counts, 'lost', job.queue, 1)
end
