-- Read indexes for the audit; a key of a wrong type counts as empty, because that is a finding of its own.
local function score(key, id)
  local found = redis.pcall('ZSCORE', key, id)
  return type(found) == 'string' and found
end

local function size(key)
  local found = redis.pcall('ZCARD', key)
  return type(found) == 'number' and found or 0
end
