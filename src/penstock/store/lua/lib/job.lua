-- Read and write a job and the keys beside it. A job is one string, a msgpack map of its fields: so one command reads or writes
-- as many jobs as a call moves, where a hash would take one command a job.
local INLINE_BYTES = 256

-- Return the texts of jobs in order, false for one that is not there.
local function read_all(ids)
  if #ids == 0 then
    return {}
  end
  local keys = {}
  for index = 1, #ids do
    keys[index] = K.job(ids[index])
  end
  return redis.call('MGET', unpack(keys))
end

-- Return all fields of a job; none when there is no such job. A text that was read already is good for the first time only: whoever
-- asks again in the same call must see what was written meanwhile. A field that this release does not know is kept by `store`.
local loaded = {}
local function load(id, text)
  if not text or loaded[id] then
    text = redis.call('GET', K.job(id))
  end
  loaded[id] = true
  if not text then
    return {}
  end
  local job = cmsgpack.unpack(text)
  if type(job) ~= 'table' then
    error('the job is damaged: it cannot be read')
  end
  return job
end

local function store(id, job)
  redis.call('SET', K.job(id), cmsgpack.pack(job))
end

-- Change fields of a job that is to be stored; `false` takes a field away.
local function apply(job, changes)
  for name, value in pairs(changes) do
    if value == false then
      value = nil
    end
    job[name] = value
  end
end

-- Put a value into a job; one that is long is to be stored in a key of its own: return what goes there.
local function put_value(job, name, key_of, id, value)
  if #value <= INLINE_BYTES then
    job[name] = value
    return nil
  end
  return {key_of(id), value}
end

-- Add the keys of a job to a list. Most have none beside their own, and what a job holds tells so; without `job` all are named.
local function add_keys(keys, id, job)
  keys[#keys + 1] = K.job(id)
  if not (job and job.input and not (job.before or job.output) and (job.result or job.status ~= 'completed')) then
    for _, key_of in ipairs({K.input, K.result, K.attempts, K.log, K.stream}) do
      keys[#keys + 1] = key_of(id)
    end
  end
end

-- Remove a job with all its keys.
local function remove_job(id, job)
  local keys = {}
  add_keys(keys, id, job)
  redis.call('DEL', unpack(keys))
end

-- Record how the job's latest attempt ended; only the newest records are kept. Errors are opaque JSON; the worker's name may
-- hold any character, so its length stands before it. A damaged key of records stops no job.
local function record(id, job, changes, outcome, error_json)
  local attempt, worker = tonumber(job.attempt), job.worker or ''
  local text = string.format('%s|%s|%.0f|%d|%s%s', outcome, job.started or '', now, #worker, worker, error_json or '')
  redis.pcall('HSET', K.attempts(id), attempt, text)
  if attempt > 20 then
    redis.pcall('HDEL', K.attempts(id), attempt - 20)
  end
  changes.before = outcome
end
