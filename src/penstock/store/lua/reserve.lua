-- reserve: keep an idempotency key for a job that lives in another partition.
-- Guarantee: the first job to come has the key; whoever repeats is told its id, or its answer once there is one.
-- KEYS: meta (hash), canary (none)
-- ARGV: items (msgpack: [digest, fingerprint, keep_ms, id]...)
-- Returns: per item [reserved, id], [replayed, id, status, created ms, due ms or '', expires ms or '', existing], [reused, id] or [error, text]
-- Transitions: none
-- Flags: none (refused when out of memory)
-- Uses: time, job, place_names, place, once
local items = cmsgpack.unpack(ARGV[1])

local function reserve_one(item)
  local digest, fingerprint, keep_ms, id = item[1], item[2], item[3], item[4]
  local record = recall(digest)
  if record then
    local answer = replay(record, fingerprint)
    if answer[1] == 'reserved' and record.id ~= id and not record.shared then
      remember(digest, record.keep_until, fingerprint, record.id, SHARED)
    end
    return answer
  end
  remember(digest, now + keep_ms, fingerprint, id, '')
  return {'reserved', id}
end

local answers = {}
for index = 1, #items do
  answers[index] = guarded(reserve_one, items[index])
end
return answers
