#!lua flags=allow-oom
-- Hand a line back that was not finished, as at the end of a process; no crash is counted.
-- What failed beside others twice runs alone next: the fault may be a neighbour's.
-- ARGV: job, fence, window, 1 where it failed -> 1 done, 2 so it was before, 0 stale
local j = get('job', ARGV[1], 'state', 'fence', 'cancel', 'slane')
if j[2] ~= ARGV[2] then return 0 end
if j[1] ~= 'running' then return j[1] == 'queued' and 2 or 0 end
if j[3] ~= '' then
  publish(ARGV[1], j[3], '', false, tonumber(ARGV[3]))
else
  -- Most lines never fail: their hashes shall not pay for the field.
  local key, failed = P .. 'job:' .. ARGV[1], ARGV[4] == '1'
  local faults = failed and redis.call('HINCRBY', key, 'faults', 1)
    or number(redis.call('HGET', key, 'faults'))
  requeue(ARGV[1], (j[4] == 'suspect' or faults > 1) and 'suspect' or 'retry')
end
return 1
