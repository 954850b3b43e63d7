-- settle: end attempts, each under its token.
-- Guarantee: the token is compared before the first write; a repeat by the same token and verb changes nothing and says so.
-- KEYS: meta (hash), canary (none)
-- ARGV: items (msgpack: [id, attempt, nonce, verb, value, delay_ms, reason, outcome, counter of what was over its limit or '']...), retention_ms, failed_retention_ms
-- Returns: per item the status it has now, or [repeated|stale, status or ''] or [error, text]
-- Transitions: running -complete-> completed, running -retry-> retrying, running -fail-> failed, running -release-> queued, running -snooze-> scheduled, running -cancel-> cancelled
-- Flags: allow-oom
-- Uses: time, job, place_names, place, together
local items = cmsgpack.unpack(ARGV[1])
local retention = {ms = tonumber(ARGV[2]), failed_ms = tonumber(ARGV[3])}

-- Completions that are written together, after all items were read.
local answers, completions, completing = {}, {}, {}

local function complete_together()
  if #completions == 0 then
    return
  end
  move_together(completions, 'completed', retention)
  local completed = {}
  for _, one in ipairs(completions) do
    local queue, over = one.job.queue, items[one.index][9]
    if one.failed then
      answers[one.index] = {'error', text_of(one.failed)}
    else
      completed[queue] = (completed[queue] or 0) + 1
      if over and over ~= '' then
        add(counts, over, queue, 1)
      end
    end
  end
  for queue, count in pairs(completed) do
    add(counts, 'completed', queue, count)
  end
  completions, completing = {}, {}
end

local function settle_one(item, index, text)
  local id, attempt, nonce, verb, value, delay_ms = item[1], item[2], item[3], item[4], item[5], item[6]
  if completing[id] then
    -- The same job again: it must be seen as the first of them leaves it.
    complete_together()
  end
  local job = load(id, text)
  local mark = attempt .. ' ' .. verb
  if not job.status or tonumber(job.attempt or 0) ~= attempt or job.nonce ~= nonce then
    return {'stale', job.status or ''}
  end
  if job.status ~= 'running' then
    return {job.settled == mark and 'repeated' or 'stale', job.status}
  end
  if verb == 'cancel' and not job.cancel then
    return {'stale', job.status}
  end

  if verb == 'complete' then
    job.settled, job.finished = mark, now
    completions[#completions + 1] = {id = id, job = job, at = now, texts = put_value(job, 'result', K.result, id, value), index = index}
    completing[id] = true
    return 'completed'
  end
  local changes = {settled = mark}
  if verb == 'fail' then
    record(id, job, changes, item[8], value)
    changes.counted = tonumber(job.counted or 0) + 1
    changes.reason = item[7]
    finish(id, job, 'failed', changes, retention)
  elseif job.cancel then
    record(id, job, changes, 'cancelled', value)
    finish(id, job, 'cancelled', changes, retention)
  elseif verb == 'retry' then
    record(id, job, changes, item[8], value)
    changes.counted = tonumber(job.counted or 0) + 1
    changes.due = now + delay_ms
    move(id, job, 'retrying', now + delay_ms, changes)
    add(counts, 'retried', job.queue, 1)
  elseif verb == 'snooze' then
    record(id, job, changes, 'released', value)
    changes.due = now + delay_ms
    move(id, job, 'scheduled', now + delay_ms, changes)
  elseif verb == 'release' then
    record(id, job, changes, 'released', value)
    move(id, job, 'queued', job.seq, changes)
  end
  if item[9] and item[9] ~= '' then
    add(counts, item[9], job.queue, 1)
  end
  return job.status
end

local ids = {}
for index = 1, #items do
  ids[index] = items[index][1]
end
local texts = read_all(ids)
for index = 1, #items do
  answers[index] = guarded(settle_one, items[index], index, texts[index])
end
complete_together()
flush()
return answers
