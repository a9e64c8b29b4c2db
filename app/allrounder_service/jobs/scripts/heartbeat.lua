#!lua flags=allow-oom
-- Renew the leases (visibility timeouts) that this worker still holds.
-- ARGV: worker, solo lease in ms, then job, fencing token...
-- -> {jobs whose lease was lost, jobs to stop}
local worker, lost, stop = ARGV[1], {}, {}
redis.call('ZADD', P .. 'workers', now(), worker)
if redis.call('GET', P .. 'solo') == worker then redis.call('PEXPIRE', P .. 'solo', ARGV[2]) end
for i = 3, #ARGV, 2 do
  local job = ARGV[i]
  local j = get('job', job, 'state', 'fence', 'slane', 'sid', 'cancel')
  -- Only with the current fencing token: a worker that resumes after a pause must not renew the
  -- lease of another.
  if j[1] == 'running' and j[2] == ARGV[i + 1] then
    redis.call('XCLAIM', P .. 'lane:' .. j[3], 'g', worker, 0, j[4], 'JUSTID')
    if j[5] ~= '' then stop[#stop + 1] = job end
  else
    lost[#lost + 1] = job
  end
end
return {lost, stop}
