-- submit: create jobs, each unless its id already stands.
-- Guarantee: repeating a submit by id changes nothing and answers with the standing job; a refused item leaves nothing.
-- KEYS: meta (hash), canary (none)
-- ARGV: items (msgpack: [id, task, type, queue, priority, input, options, run_at, delay, expires_at, expires_in, retention]...)
-- Returns: per item [created|exists, status, created ms, due ms or '', expires ms or ''] or [error, text]
-- Transitions: none -submit-> queued, none -schedule-> scheduled
-- Flags: none (refused when out of memory)
-- Uses: time, job, place_names, place
local items = cmsgpack.unpack(ARGV[1])

local function submit_one(item)
  local id, task, job_type, queue, priority, input, options = item[1], item[2], item[3], item[4], item[5], item[6], item[7]
  local standing = load(id, {'status', 'created', 'due', 'expires'})
  if standing.status then
    return {'exists', standing.status, standing.created, standing.due or '', standing.expires or ''}
  end
  local due = item[8] or (item[9] and now + item[9])
  local expires = item[10] or (item[11] and now + item[11]) or nil
  local job = {queue = queue, priority = priority, expires = expires}
  local fields = {'status', '', 'task', task, 'queue', queue, 'priority', priority, 'created', now}
  local at
  if due and due > now then
    job.status, at = 'scheduled', due
    fields[#fields + 1] = 'due'
  else
    due = nil
    job.status, at = 'queued', next_seq(#items)
    fields[#fields + 1] = 'seq'
  end
  fields[2] = job.status
  fields[#fields + 1] = at
  for name, value in pairs({type = job_type ~= 'task' and job_type or nil, head = options ~= '' and options or nil,
    expires = expires, retention = item[12] or nil}) do
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  put_value(fields, 'input', K.input(id), input)
  redis.call('HSET', K.job(id), unpack(fields))
  enter(id, job, at)
  add(counts, 'submitted', queue, 1)
  return {'created', job.status, now, due or '', expires or ''}
end

local answers, new_queues = {}, {}
for index = 1, #items do
  local answer = guarded(submit_one, items[index])
  if answer[1] == 'error' then
    -- Redis does not roll back: what this item wrote before its error must not stay as half a job.
    remove_job(items[index][1])
  else
    new_queues[items[index][4]] = true
  end
  answers[index] = answer
end
for queue in pairs(new_queues) do
  redis.call('SADD', K.queues, queue)
end
flush()
return answers
