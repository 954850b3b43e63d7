-- submit: create jobs, each unless its id already stands.
-- Guarantee: repeating a submit by id, or by an idempotency key, changes nothing and answers with the standing job, also when the
--   queue is full; a refused item leaves nothing but its queue's name.
-- KEYS: meta (hash), canary (none)
-- ARGV: items (msgpack: [id, task, type, queue, priority, input, options, run_at, delay, expires_at, expires_in, retention, idempotency digest, fingerprint, keep_ms]...), bounds (msgpack: {queue: most waiting jobs})
-- Returns: per item [created|exists|replayed, id, status, created ms, due ms or '', expires ms or ''], [full], [reused|reserved, id] or [error, text]
-- Transitions: none -submit-> queued, none -schedule-> scheduled
-- Flags: none (refused when out of memory)
-- Uses: time, job, place_names, place, once
local items, bounds = cmsgpack.unpack(ARGV[1]), cmsgpack.unpack(ARGV[2])
-- How many jobs wait in each queue that has a bound, those of this call included.
local waiting = {}

local function is_full(queue)
  if not bounds[queue] then
    return false
  end
  if not waiting[queue] then
    local members = {}
    for index = 1, #PRIORITIES do
      members[index] = queue .. ':' .. PRIORITIES[index]
    end
    local depths = redis.call('ZMSCORE', K.ready, unpack(members))
    local delayed = redis.call('HGET', K.gauges, 'delayed:' .. queue)
    waiting[queue] = tonumber(delayed or 0) or 0
    for index = 1, #members do
      waiting[queue] = waiting[queue] + tonumber(depths[index] or 0)
    end
  end
  return waiting[queue] >= bounds[queue]
end

-- The id whose keys are being written.
local begun
local known_queues = {}

local function submit_one(item)
  local id, task, job_type, queue, priority, input, options = item[1], item[2], item[3], item[4], item[5], item[6], item[7]
  -- First, so that no job ever stands in a queue that nobody lists.
  if not known_queues[queue] then
    redis.call('SADD', K.queues, queue)
    known_queues[queue] = true
  end
  -- EXISTS first: the common answer is no, at a third of the cost.
  if redis.call('EXISTS', K.job(id)) == 1 then
    local standing = load(id, {'status', 'created', 'due', 'expires'})
    if not (standing.status and standing.created) then
      error('the job that stands under this id is damaged')
    end
    return {'exists', id, standing.status, standing.created, PLACES[standing.status] == 'delayed' and standing.due or '', standing.expires or ''}
  end
  if is_full(queue) then
    add(counts, 'refused', queue, 1)
    return {'full'}
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
  local function put(name, value)
    if value then
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  put('type', job_type ~= 'task' and job_type)
  put('head', options ~= '' and options)
  put('expires', expires)
  put('retention', item[12])
  begun = id
  put_value(fields, 'input', K.input(id), input)
  redis.call('HSET', K.job(id), unpack(fields))
  enter(id, job, job.status, at)
  add(counts, 'submitted', queue, 1)
  if waiting[queue] then
    waiting[queue] = waiting[queue] + 1
  end
  return {'created', id, job.status, now, due or '', expires or ''}
end

-- Submit an item under its idempotency key, whose record shares the job's partition.
local function submit_once(item)
  local digest = item[13]
  if not digest then
    return submit_one(item)
  end
  local record = recall(digest)
  if record then
    return replay(record, item[14])
  end
  local answer = submit_one(item)
  if answer[1] ~= 'full' then
    remember(digest, now + item[15], item[14], item[1], in_short(answer))
  end
  return answer
end

-- Redis does not roll back: what an item wrote before its error must not stay as half a job.
local function take_back(id, queue, priority)
  remove_job(id)
  for _, index_key in ipairs({K.queue(queue, priority), K.delayed, K.expiry}) do
    redis.pcall('ZREM', index_key, id)
  end
end

local answers = {}
for index = 1, #items do
  local item = items[index]
  answers[index] = guarded(submit_once, item)
  if answers[index][1] == 'error' and begun == item[1] then
    take_back(item[1], item[4], item[5])
  end
end
flush()
return answers
