#!lua flags=allow-oom
-- Renew the leases that are still this worker's.
-- ARGV: worker, solo lease in ms, then job, fence... -> {lost jobs, jobs that shall stop}
local worker, lost, stop = ARGV[1], {}, {}
redis.call('ZADD', P .. 'workers', now(), worker)
if redis.call('GET', P .. 'solo') == worker then redis.call('PEXPIRE', P .. 'solo', ARGV[2]) end
for i = 3, #ARGV, 2 do
  local job = ARGV[i]
  local j = get('job', job, 'state', 'fence', 'slane', 'sid', 'cancel')
  -- Without the fence a worker that was frozen and wakes would take the line back.
  if j[1] == 'running' and j[2] == ARGV[i + 1] then
    redis.call('XCLAIM', P .. 'lane:' .. j[3], 'g', worker, 0, j[4], 'JUSTID')
    if j[5] ~= '' then stop[#stop + 1] = job end
  else
    lost[#lost + 1] = job
  end
end
return {lost, stop}
