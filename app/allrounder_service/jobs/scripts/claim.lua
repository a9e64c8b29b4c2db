#!lua flags=allow-oom
-- Claim waiting lines for a worker; each claim gets a new fencing token.
-- ARGV: worker, wanted, running, solo lease in ms, window
-- -> {job, fence, tenant, ref, attempts, 1 where it runs alone}...
local worker, want, running = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local out, tenants, t = {}, {}, now()
-- An idle worker polls often, and each write costs the server an fsync: once in a quarter of a
-- lease is enough.
if t - number(redis.call('ZSCORE', P .. 'workers', worker)) > ARGV[4] / 12 then
  redis.call('ZADD', P .. 'workers', t, worker)
end

local function waiting(lane)
  local pending = redis.call('XPENDING', P .. 'lane:' .. lane, 'g')
  return redis.call('XLEN', P .. 'lane:' .. lane) - number(pending[1])
end

-- A suspect line runs alone: one worker drains its other lines, then claims one line at a time.
local held, alone = redis.call('GET', P .. 'solo') == worker, false
if running > 0 and #redis.call('XPENDING', P .. 'lane:suspect', 'g', '-', '+', 1, worker) > 0 then
  -- Nothing runs beside a suspect line, even when the lease on running alone has expired.
  return out
end
if want > 0 and waiting('suspect') > 0 then
  alone = held or redis.call('SET', P .. 'solo', worker, 'NX', 'PX', ARGV[4])
  -- Only heartbeats renew this lease while the worker drains: one that hangs must lose it.
  if alone and running > 0 then return out end
  if alone then redis.call('PEXPIRE', P .. 'solo', ARGV[4]) end
elseif held then
  redis.call('DEL', P .. 'solo')
end

for _, lane in ipairs(alone and {'suspect'} or {'retry', 'batch'}) do
  local left = (alone and 1 or want) - #out
  if left > 0 then
    local read = redis.call('XREADGROUP', 'GROUP', 'g', worker, 'COUNT', left, 'STREAMS',
      P .. 'lane:' .. lane, '>')
    for _, entry in ipairs(read and read[1][2] or {}) do
      local sid, job = entry[1], entry[2][2]
      local j = get('job', job, 'state', 'sid', 'tenant', 'ref')
      if j[1] == 'queued' and j[2] == sid then
        local fence = redis.call('HINCRBY', P .. 'job:' .. job, 'fence', 1)
        local attempts = redis.call('HINCRBY', P .. 'job:' .. job, 'attempts', 1)
        redis.call('HSET', P .. 'job:' .. job, 'state', 'running', 'owner', worker, 'started_ms', t)
        if attempts > 1 then redis.call('HINCRBY', P .. 'stats', 'redelivered', 1) end
        if lane == 'batch' then
          shrink_window(j[3])
          if not tenants[j[3]] then tenants[#tenants + 1] = j[3] end
          tenants[j[3]] = true
        end
        out[#out + 1] = {job, fence, j[3], j[4], attempts, alone and 1 or 0}
      else
        remove_entry(lane, sid)
      end
    end
  end
end
for _, tenant in ipairs(tenants) do promote(tenant, tonumber(ARGV[5])) end
return out
