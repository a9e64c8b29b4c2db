#!lua flags=allow-oom
-- Take back the lines whose lease ran out: their worker died or hangs. It is fenced off at once.
-- ARGV: lease in ms, crashes alone before giving up, window, silence of a consumer in ms -> lines
local reaped = 0
for _, lane in ipairs(LANES) do
  local key = P .. 'lane:' .. lane
  local found = redis.call('XAUTOCLAIM', key, 'g', 'reaper', ARGV[1], '0-0', 'COUNT', 200)
  for _, entry in ipairs(found[2]) do
    local sid, job = entry[1], entry[2][2]
    local j = get('job', job, 'state', 'sid', 'cancel')
    if j[1] == 'running' and j[2] == sid then
      reaped = reaped + 1
      redis.call('HINCRBY', P .. 'job:' .. job, 'fence', 1)
      redis.call('HINCRBY', P .. 'stats', 'lease_lost', 1)
      local crashes = redis.call('HINCRBY', P .. 'job:' .. job, 'crashes', 1)
      local solo = lane ~= 'suspect' and 0
        or redis.call('HINCRBY', P .. 'job:' .. job, 'solo_crashes', 1)
      if j[3] ~= '' then
        publish(job, j[3], '', false, tonumber(ARGV[3]))
      elseif solo >= tonumber(ARGV[2]) then
        publish(job, 'failed', '{"code":"worker_lost"}', false, tonumber(ARGV[3]))
        redis.call('XADD', P .. 'dead', '*', 'j', job, 'crashes', crashes)
        redis.call('HINCRBY', P .. 'stats', 'dead', 1)
      else
        requeue(job, crashes < 2 and 'retry' or 'suspect')
      end
    else
      take_out(lane, sid)
    end
  end
  for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', key, 'g')) do
    -- {'name', n, 'pending', p, 'idle', i, ...}: with entries pending it would discard them.
    if consumer[4] == 0 and consumer[6] > tonumber(ARGV[4]) then
      redis.call('XGROUP', 'DELCONSUMER', key, 'g', consumer[2])
    end
  end
end
redis.call('ZREMRANGEBYSCORE', P .. 'workers', '-inf', now() - ARGV[4])
return reaped
