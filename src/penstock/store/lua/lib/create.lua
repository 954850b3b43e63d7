-- Create jobs, each unless its id already stands; the script sets `bounds` ({queue: most waiting jobs}) first.
local bounds = {}
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

-- Create one job: [id, task, type, queue, priority, input, options, run_at, delay, expires_at, expires_in, retention]. Places in
-- queues are taken from the server in blocks of `block`.
local function submit_one(item, block)
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
    job.status, at = 'queued', next_seq(block)
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

-- Redis does not roll back: what an item wrote before its error must not stay as half a job.
local function take_back(id, queue, priority)
  remove_job(id)
  for _, index_key in ipairs({K.queue(queue, priority), K.delayed, K.expiry}) do
    redis.pcall('ZREM', index_key, id)
  end
end
