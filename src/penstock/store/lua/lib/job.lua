-- Read and write a job's hash and the keys beside it.
local INLINE_BYTES = 64

-- Return the named fields of a job as a table; a missing field is nil. `status` is nil when there is no such job.
local function load(id, names)
  local values = redis.call('HMGET', K.job(id), unpack(names))
  local job = {}
  for index = 1, #names do
    job[names[index]] = values[index] or nil
  end
  return job
end

-- Return all fields of a job. A new one has few, and to read them all costs half of what it costs to ask for each that may be there.
local function load_all(id)
  local values = redis.call('HGETALL', K.job(id))
  local job = {}
  for index = 1, #values, 2 do
    job[values[index]] = values[index + 1]
  end
  return job
end

-- What `move` and `record` need to know of a job.
local CORE = {'status', 'queue', 'priority', 'seq', 'attempt', 'nonce', 'worker', 'started', 'counted', 'lost', 'expires', 'cancel',
  'retention', 'watch', 'settled', 'unique', 'alone'}

-- What a submit and a redrive need to know of the holder of a unique key besides.
local HOLDER = {'created', 'due', unpack(CORE)}

-- Append a value to the fields to be written, or store it in its own key when it would blow up the compact hash.
local function put_value(fields, name, key, value)
  if #value <= INLINE_BYTES then
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  else
    redis.call('SET', key, value)
  end
end

local function remove_job(id)
  redis.call('DEL', K.job(id), K.input(id), K.result(id), K.log(id), K.stream(id))
end

-- Record how the job's latest attempt ended; only the newest records are kept. Errors are opaque JSON; the worker's name may
-- hold any character, so its length stands before it.
local function record(id, job, fields, outcome, error_json)
  local attempt = tonumber(job.attempt)
  fields[#fields + 1] = 'e' .. attempt
  local worker = job.worker or ''
  fields[#fields + 1] = outcome .. '|' .. (job.started or '') .. '|' .. now .. '|' .. #worker .. '|' .. worker .. (error_json or '')
  if attempt > 20 then
    redis.call('HDEL', K.job(id), 'e' .. (attempt - 20))
  end
end
