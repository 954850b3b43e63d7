-- Count what attempts log and stream, in one field of the job: the attempt that wrote last and how many entries it made; of the
-- log and of the stream how many were ever stored, the bytes that are kept, and how many never came.
local function read_tally(text)
  local a, m, ln, lb, ld, sn, sb, sd =
    string.match(text or '0|0|0|0|0|0|0|0', '^(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|(%d+)|(%d+)$')
  if not a then
    error('the job is damaged: what counts its output cannot be read')
  end
  return {
    attempt = tonumber(a), made = tonumber(m),
    log = {stored = tonumber(ln), bytes = tonumber(lb), missing = tonumber(ld)},
    stream = {stored = tonumber(sn), bytes = tonumber(sb), missing = tonumber(sd)},
  }
end

-- Add how many entries are kept; a key of a wrong type is an error here, before anything is written.
local function read_kept(tally, id)
  tally.log.key, tally.stream.key = K.log(id), K.stream(id)
  tally.log.kept = redis.call('LLEN', tally.log.key)
  tally.stream.kept = redis.call('LLEN', tally.stream.key)
end
