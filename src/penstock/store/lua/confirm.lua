-- confirm: remember the answer to a submit whose idempotency key was reserved; forget the key when the submit was refused.
-- Guarantee: only a key that is still reserved for that job is touched, and none is forgotten that a second submit came with;
--   harmless to repeat.
-- KEYS: meta (hash), canary (none)
-- ARGV: items (msgpack: [digest, id, status or '', created ms, due ms or '', expires ms or '', id answered, existing 0|1]...)
-- Returns: per item done or [error, text]
-- Transitions: none
-- Flags: allow-oom
-- Uses: time, job, place_names, place, once
local items = cmsgpack.unpack(ARGV[1])

local function confirm_one(item)
  local digest, id = item[1], item[2]
  local record = recall(digest)
  if record and record.id == id and record.answer == '' then
    if item[3] == '' then
      -- Whoever else was told this id may have been taken under it.
      if not record.shared then
        redis.call('DEL', K.idem(digest))
      end
    else
      -- The answer may tell of another job: the one that holds the unique key.
      local answer = {'', item[7], item[3], item[4], item[5], item[6], item[8] == 1 and 'existing' or nil}
      remember(digest, record.keep_until, record.fingerprint, item[7], in_short(answer))
    end
  end
  return 'done'
end

local answers = {}
for index = 1, #items do
  answers[index] = guarded(confirm_one, items[index])
end
return answers
