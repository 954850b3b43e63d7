-- Remember the answers to idempotency keys. A record is `until|fingerprint|id|answer`; the answer is
-- `status|created|due|expires`, with `|existing` where it tells of the holder of a unique key, or empty while the key is only
-- reserved for a job that lives in another partition, a plus once a second submit was told of that reservation.
local SHARED = '+'

-- Return what stands under a key: nil when nothing does, or no longer.
local function recall(digest)
  local text = redis.call('GET', K.idem(digest))
  if not text then
    return nil
  end
  local keep_until, fingerprint, id, answer = string.match(text, '^(%d+)|(%x+)|([^|]+)|(.*)$')
  if not keep_until or tonumber(keep_until) <= now then
    return nil
  end
  local shared = answer == SHARED
  return {keep_until = tonumber(keep_until), fingerprint = fingerprint, id = id, answer = shared and '' or answer, shared = shared}
end

-- The script's clock decides; the server's own expiry only frees the memory.
local function remember(digest, keep_until, fingerprint, id, answer)
  local text = string.format('%.0f|%s|%s|%s', keep_until, fingerprint, id, answer)
  redis.call('SET', K.idem(digest), text, 'PX', math.max(1, keep_until - now))
end

-- Return what a key that was used before answers.
local function replay(record, fingerprint)
  if record.fingerprint ~= fingerprint then
    return {'reused', record.id}
  end
  if record.answer == '' then
    return {'reserved', record.id}
  end
  local status, created, due, expires, existing = string.match(record.answer, '^(%l+)|(%d+)|(%d*)|(%d*)|?(%l*)$')
  return {'replayed', record.id, status, created, due, expires, existing ~= '' and existing or nil}
end

-- Return what is remembered of an answer to a submit.
local function in_short(answer)
  local existing = answer[7] and '|existing' or ''
  return string.format('%s|%.0f|%s|%s%s', answer[3], tonumber(answer[4]), answer[5], answer[6], existing)
end
