-- announce: put a worker and its tasks into the registry, and drop those not seen for long.
-- Guarantee: none; the registry is a view that is refreshed.
-- KEYS: meta (hash), canary (none)
-- ARGV: worker, description (JSON), tasks (msgpack: [name, options JSON]...), worker_live_ms, task_kept_ms
-- Returns: now
-- Transitions: none
-- Flags: allow-oom
-- Uses: time
local worker, worker_live_ms, task_kept_ms = ARGV[1], tonumber(ARGV[4]), tonumber(ARGV[5])
redis.call('ZADD', K.workers, now, worker)
redis.call('HSET', K.worker_info, worker, ARGV[2])
for _, task in ipairs(cmsgpack.unpack(ARGV[3])) do
  redis.call('ZADD', K.tasks, now, task[1])
  redis.call('HSET', K.task_options, task[1], task[2])
end
local function drop(index_key, hash_key, before)
  for _, name in ipairs(redis.call('ZRANGEBYSCORE', index_key, '-inf', before, 'LIMIT', 0, 100)) do
    redis.call('ZREM', index_key, name)
    redis.call('HDEL', hash_key, name)
  end
end
drop(K.workers, K.worker_info, now - worker_live_ms)
drop(K.tasks, K.task_options, now - task_kept_ms)
return now
