-- End an attempt whose worker is gone: the job runs again in its own place, or is poisoned, or a cancel is done. Only a death alone
-- poisons: one beside others may have been a neighbour's doing.
local function lose(id, job, max_lost, retention)
  local lost = tonumber(job.lost or 0) + 1
  local fields = {'lost', lost}
  record(id, job, fields, 'worker_lost')
  if job.cancel then
    finish(id, job, 'cancelled', fields, retention)
  elseif lost >= max_lost and tonumber(job.alone or 0) == tonumber(job.attempt) then
    fields[#fields + 1] = 'reason'
    fields[#fields + 1] = 'poisoned'
    finish(id, job, 'failed', fields, retention)
    add(counts, 'poisoned', job.queue, 1)
  else
    move(id, job, 'queued', job.seq, fields)
  end
  add(counts, 'lost', job.queue, 1)
end
