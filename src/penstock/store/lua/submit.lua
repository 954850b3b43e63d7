-- submit: create jobs, each unless its id already stands.
-- Guarantee: repeating a submit by id, or by an idempotency key, changes nothing and answers with the standing job, also when the
--   queue is full; a refused item leaves nothing but its queue's name.
-- KEYS: meta (hash), canary (none)
-- ARGV: items (msgpack: [id, task, type, queue, priority, input, options, run_at, delay, expires_at, expires_in, retention, idempotency digest, fingerprint, keep_ms]...), bounds (msgpack: {queue: most waiting jobs})
-- Returns: per item [created|exists|replayed, id, status, created ms, due ms or '', expires ms or ''], [full], [reused|reserved, id] or [error, text]
-- Transitions: none -submit-> queued, none -schedule-> scheduled
-- Flags: none (refused when out of memory)
-- Uses: time, job, place_names, place, create, once
local items = cmsgpack.unpack(ARGV[1])
bounds = cmsgpack.unpack(ARGV[2])

-- Submit an item under its idempotency key, whose record shares the job's partition.
local function submit_once(item)
  local digest = item[13]
  if not digest then
    return submit_one(item, #items)
  end
  local record = recall(digest)
  if record then
    return replay(record, item[14])
  end
  local answer = submit_one(item, #items)
  if answer[1] ~= 'full' then
    remember(digest, now + item[15], item[14], item[1], in_short(answer))
  end
  return answer
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
