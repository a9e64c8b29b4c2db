#!lua flags=allow-oom
-- Return an unfinished line for a retry, as at a shutdown; no crash is counted. A line that failed
-- twice beside others runs alone next, because another line may have caused the failure.
-- ARGV: job, fencing token, window, 1 where it failed -> 1 done, 2 repeated, 0 stale
local j = get('job', ARGV[1], 'state', 'fence', 'cancel', 'slane')
if j[2] ~= ARGV[2] then return 0 end
if j[1] ~= 'running' then return j[1] == 'queued' and 2 or 0 end
if j[3] ~= '' then
  publish(ARGV[1], j[3], '', false, tonumber(ARGV[3]))
else
  -- Written only on a failure: most lines never need the memory of this field.
  local key, failed = P .. 'job:' .. ARGV[1], ARGV[4] == '1'
  local faults = failed and redis.call('HINCRBY', key, 'faults', 1)
    or number(redis.call('HGET', key, 'faults'))
  requeue(ARGV[1], (j[4] == 'suspect' or faults > 1) and 'suspect' or 'retry')
end
return 1
