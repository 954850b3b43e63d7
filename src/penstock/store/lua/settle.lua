-- settle: end attempts, each under its token.
-- Guarantee: the token is compared before the first write; a repeat by the same token and verb changes nothing and says so.
-- KEYS: meta (hash), canary (none)
-- ARGV: items (msgpack: [id, attempt, nonce, verb, value, delay_ms, reason, outcome, counter of what was over its limit or '']...), retention_ms, failed_retention_ms
-- Returns: per item [done|repeated|stale, status or ''] or [error, text]
-- Transitions: running -complete-> completed, running -retry-> retrying, running -fail-> failed, running -release-> queued, running -snooze-> scheduled, running -cancel-> cancelled
-- Flags: allow-oom
-- Uses: time, job, place_names, place, together
local items = cmsgpack.unpack(ARGV[1])
local retention = {ms = tonumber(ARGV[2]), failed_ms = tonumber(ARGV[3])}

-- A field read costs about as much as a call, and most attempts complete: what a completion needs is read alone. It need not
-- know of `expires`, which the claim has already taken off its index.
local COMPLETE = {'status', 'queue', 'attempt', 'nonce', 'worker', 'retention', 'watch', 'settled', 'unique'}

-- Completions that are written together, after all items were read.
local completions, completing = {}, {}

local function complete_together()
  if #completions == 0 then
    return
  end
  move_together(completions, 'completed')
  for _, one in ipairs(completions) do
    if one.failed then
      one.answer[1], one.answer[2] = 'error', text_of(one.failed)
    else
      add(counts, 'completed', one.job.queue, 1)
    end
  end
  completions, completing = {}, {}
end

local function settle_one(item)
  local id, attempt, nonce, verb, value, delay_ms = item[1], item[2], item[3], item[4], item[5], item[6]
  if completing[id] then
    -- The same job again: it must be seen as the first of them leaves it.
    complete_together()
  end
  local job = load(id, verb == 'complete' and COMPLETE or CORE)
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

  local fields = {'settled', mark}
  if verb == 'complete' then
    put_value(fields, 'result', K.result(id), value)
    if is_plain(job) and not (item[9] and item[9] ~= '') then
      fields[#fields + 1] = 'finished'
      fields[#fields + 1] = now
      local answer = {'done', 'completed'}
      completions[#completions + 1] = {
        id = id, job = job, at = now, fields = fields, keep_ms = kept_ms(job, 'completed', retention), answer = answer}
      completing[id] = true
      return answer
    end
    finish(id, job, 'completed', fields, retention)
  elseif verb == 'fail' then
    record(id, job, fields, item[8], value)
    fields[#fields + 1] = 'counted'
    fields[#fields + 1] = tonumber(job.counted or 0) + 1
    fields[#fields + 1] = 'reason'
    fields[#fields + 1] = item[7]
    finish(id, job, 'failed', fields, retention)
  elseif job.cancel then
    record(id, job, fields, 'cancelled', value)
    finish(id, job, 'cancelled', fields, retention)
  elseif verb == 'retry' then
    record(id, job, fields, item[8], value)
    fields[#fields + 1] = 'counted'
    fields[#fields + 1] = tonumber(job.counted or 0) + 1
    fields[#fields + 1] = 'due'
    fields[#fields + 1] = now + delay_ms
    move(id, job, 'retrying', now + delay_ms, fields)
    add(counts, 'retried', job.queue, 1)
  elseif verb == 'snooze' then
    record(id, job, fields, 'released', value)
    fields[#fields + 1] = 'due'
    fields[#fields + 1] = now + delay_ms
    move(id, job, 'scheduled', now + delay_ms, fields)
  elseif verb == 'release' then
    record(id, job, fields, 'released', value)
    move(id, job, 'queued', job.seq, fields)
  end
  if item[9] and item[9] ~= '' then
    add(counts, item[9], job.queue, 1)
  end
  return {'done', job.status}
end

local answers = {}
for index = 1, #items do
  answers[index] = guarded(settle_one, items[index])
end
complete_together()
flush()
return answers
