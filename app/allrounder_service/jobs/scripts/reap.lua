#!lua flags=allow-oom
-- Reclaim lines whose lease expired, for a retry: their worker crashed or hangs. A new fencing
-- token makes its result stale at once.
-- ARGV: lease in ms, crashes alone before a line is a dead letter, window,
--       idle time in ms after which a consumer is removed -> lines reclaimed
local window, reaped, t = tonumber(ARGV[3]), 0, now()
local last = number(redis.call('GET', P .. 'reaped'))
redis.call('SET', P .. 'reaped', t)
-- No heartbeat could arrive while Redis was away: a grace period of one lease lets the workers
-- renew theirs.
if last > 0 and t - last > tonumber(ARGV[1]) then
  redis.call('SET', P .. 'grace', 1, 'PX', ARGV[1])
end
if redis.call('EXISTS', P .. 'grace') == 1 then return 0 end

local function reclaim(lane, job, owner, cancel)
  local key = P .. 'job:' .. job
  if lane == 'suspect' and redis.call('GET', P .. 'solo') == owner then
    redis.call('DEL', P .. 'solo')
  end
  redis.call('HINCRBY', key, 'fence', 1)
  redis.call('HINCRBY', P .. 'stats', 'lease_lost', 1)
  local crashes = redis.call('HINCRBY', key, 'crashes', 1)
  local solo = lane == 'suspect' and redis.call('HINCRBY', key, 'solo_crashes', 1) or 0
  if cancel ~= '' then
    publish(job, cancel, '', false, window)
  elseif solo >= tonumber(ARGV[2]) then
    publish(job, 'failed', '{"code":"worker_lost"}', false, window)
    redis.call('XADD', P .. 'dead', '*', 'j', job, 'crashes', crashes)
    redis.call('HINCRBY', P .. 'stats', 'dead', 1)
  else
    requeue(job, crashes < 2 and 'retry' or 'suspect')
  end
end

for _, lane in ipairs(LANES) do
  local key, cursor, taken = P .. 'lane:' .. lane, '0-0', 0
  -- One XAUTOCLAIM scans at most ten entries for each that it may return.
  repeat
    local found = redis.call('XAUTOCLAIM', key, 'g', 'reaper', ARGV[1], cursor, 'COUNT', 200)
    cursor, taken = found[1], taken + #found[2]
    for _, entry in ipairs(found[2]) do
      local sid, job = entry[1], entry[2][2]
      local j = get('job', job, 'state', 'sid', 'owner', 'cancel')
      if j[1] == 'running' and j[2] == sid then
        reaped = reaped + 1
        reclaim(lane, job, j[3], j[4])
      else
        remove_entry(lane, sid)
      end
    end
  until cursor == '0-0' or taken >= 200
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', key, 'g')) do
    -- {'name', n, 'pending', p, 'idle', i, ...}: with entries pending it would discard them.
    if consumer[4] == 0 and consumer[6] > tonumber(ARGV[4]) then
      redis.call('XGROUP', 'DELCONSUMER', key, 'g', consumer[2])
    end
  end
end
redis.call('ZREMRANGEBYSCORE', P .. 'workers', '-inf', t - ARGV[4])
return reaped
