-- Name the place that holds a job in each status.
local PLACES = {
  scheduled = 'delayed', retrying = 'delayed', queued = 'queue', running = 'running',
  completed = 'final', failed = 'final', cancelled = 'final', expired = 'final',
}
