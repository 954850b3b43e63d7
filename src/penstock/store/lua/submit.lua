-- submit: create jobs, each unless its id already stands.
-- Guarantee: repeating a submit by id, or by an idempotency key, changes nothing and answers with the standing job, also when the
--   queue is full; a refused item leaves nothing but its queue's name. Of two jobs with a unique key only one is taken while the
--   first holds it, or the first is cancelled in the same step.
-- KEYS: meta (hash), canary (none)
-- ARGV: items (msgpack: [id, task, type, queue, priority, input, options, run_at, delay, expires_at, expires_in, retention, idempotency digest, fingerprint, keep_ms, unique digest, until or '', for_ms, on_conflict]...), bounds (msgpack: {queue: most waiting jobs}), retention_ms, failed_retention_ms
-- Returns: [now, per item 1 (created now and queued, without an end), [created|exists|replayed|existing, id, status, created ms, due ms or '', expires ms or '', existing], [full], [held, id, status], [reused|reserved, id] or [error, text]]
-- Transitions: none -submit-> queued, none -schedule-> scheduled, queued -cancel-> cancelled, scheduled -cancel-> cancelled, retrying -cancel-> cancelled
-- Flags: none (refused when out of memory)
-- Uses: time, job, place_names, place, together, unique, create, once
local items = cmsgpack.unpack(ARGV[1])
bounds = cmsgpack.unpack(ARGV[2])
retention = {ms = tonumber(ARGV[3]), failed_ms = tonumber(ARGV[4])}

-- The common case: none of the ids stands, and one command tells it of all.
local keys = {}
for index = 1, #items do
  keys[index] = K.job(items[index][1])
end
local all_new = redis.call('EXISTS', unpack(keys)) == 0

-- Submit an item under its idempotency key, whose record shares the job's partition.
local function submit_once(item, index)
  local digest = item[13]
  if not digest then
    return submit_one(item, #items, index, all_new)
  end
  local record = recall(digest)
  if record then
    return replay(record, item[14])
  end
  local answer = submit_one(item, #items)
  if answer[1] ~= 'full' and answer[1] ~= 'held' then
    remember(digest, now + item[15], item[14], answer[2], in_short(answer))
  end
  return answer
end

for index = 1, #items do
  local item = items[index]
  begun = nil
  answers[index] = guarded(submit_once, item, index)
  if begun and answers[index][1] == 'error' then
    take_back(begun, item[4], item[5])
  end
end
create_together()
flush()
return {now, answers}
