-- Put before every script. Times are the server's, in milliseconds.
local P = 'vq:{v}:'
-- Batches by the time when they are due for a batch controller; `redis_keys` explains the name.
local DUE = P .. 'care'
local LANES = {'suspect', 'retry', 'batch'}

local function now()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function get(kind, id, ...)
  return redis.call('HMGET', P .. kind .. ':' .. id, ...)
end

local function number(value)
  return tonumber(value or '0') or 0
end

-- One line of the tenant leaves the waiting lines of the lane.
local function shrink_window(tenant)
  if redis.call('HINCRBY', P .. 'window', tenant, -1) <= 0 then
    redis.call('HDEL', P .. 'window', tenant)
  end
end

-- Fill the tenant's window in the lane from its backlog of batches with further lines.
local function promote(tenant, window)
  local backlog = P .. 'backlog:' .. tenant
  local free = window - number(redis.call('HGET', P .. 'window', tenant))
  while free > 0 do
    local batch = redis.call('LINDEX', backlog, 0)
    if not batch then return end
    local b = get('batch', batch, 'next', 'submitted')
    local first = number(b[1])
    local last = math.min(first + free, number(b[2]))
    for line = first, last - 1 do
      local job = batch .. '/' .. line
      local sid = redis.call('XADD', P .. 'lane:batch', '*', 'j', job)
      redis.call('HSET', P .. 'job:' .. job, 'sid', sid, 'slane', 'batch')
    end
    redis.call('HINCRBY', P .. 'window', tenant, last - first)
    redis.call('HSET', P .. 'batch:' .. batch, 'next', last)
    if last == number(b[2]) then redis.call('LPOP', backlog) end
    free = free - (last - first)
  end
end

-- `0 - lines`, because `-lines` of 0 is sent as "-0", which Redis does not accept as an integer.
local function reduce_depth(tenant, lines)
  if redis.call('HINCRBY', P .. 'depth', tenant, 0 - lines) <= 0 then
    redis.call('HDEL', P .. 'depth', tenant)
  end
  redis.call('HINCRBY', P .. 'depth', ':all', 0 - lines)
end

-- Stop a batch that is cancelled or has expired. Lines that were not submitted are counted as
-- failed here; the batch controller withdraws the others. `status` is the new status of the batch.
local function stop_submission(batch, ending, status)
  local key = P .. 'batch:' .. batch
  local b = redis.call('HMGET', key, 'tenant', 'total', 'submitted')
  local withheld = number(b[2]) - number(b[3])
  redis.call('HSET', key, 'status', status, 'ending', ending, 'withheld', withheld)
  redis.call('LREM', P .. 'backlog:' .. b[1], 0, batch)
  reduce_depth(b[1], withheld)
  redis.call('HINCRBY', key, 'failed', withheld)
  return redis.call('HINCRBY', key, 'remaining', 0 - withheld)
end

-- Remove an entry from its lane. Acknowledging it alone would let the stream grow without bound.
local function remove_entry(lane, sid)
  redis.call('XACK', P .. 'lane:' .. lane, 'g', sid)
  redis.call('XDEL', P .. 'lane:' .. lane, sid)
end

-- When the batch is due next.
local function next_due(batch, poll_ms)
  local b = get('batch', batch, 'status', 'submitted', 'total', 'expires_ms', 'remaining',
    'ending', 'forget_ms', 'swept')
  local status, t = b[1], now()
  if status == 'validating' or status == 'finalizing' then return t end
  if status == 'cancelling' or (status == 'in_progress' and b[6] ~= '') then
    return number(b[5]) == 0 and t or t + poll_ms
  end
  if status == 'in_progress' then
    return number(b[2]) < number(b[3]) and t or number(b[4])
  end
  return b[8] == '1' and number(b[7]) or t
end

-- Every line has ended: the batch is due now. A batch that is being cancelled keeps that status.
local function lines_ended(batch)
  local key = P .. 'batch:' .. batch
  if redis.call('HGET', key, 'status') == 'in_progress' then
    redis.call('HSET', key, 'status', 'finalizing', 'finalizing_ms', now())
  end
  redis.call('ZADD', DUE, now(), batch)
end

-- End a line; no other code does. `good`: its response belongs in the output file.
local function publish(job, state, result, good, window)
  local key = P .. 'job:' .. job
  local j = redis.call('HMGET', key, 'sid', 'slane', 'tenant', 'batch', 'state')
  if j[1] then
    remove_entry(j[2], j[1])
    if j[2] == 'batch' and j[5] == 'queued' then shrink_window(j[3]) end
  end
  redis.call('HDEL', key, 'sid', 'slane', 'owner')
  redis.call('HSET', key, 'state', state, 'result', result, 'ended_ms', now())
  redis.call('HINCRBY', key, 'published', 1)
  reduce_depth(j[3], 1)
  local batch = P .. 'batch:' .. j[4]
  redis.call('HINCRBY', batch, good and 'completed' or 'failed', 1)
  if redis.call('HINCRBY', batch, 'remaining', -1) == 0 then lines_ended(j[4]) end
  promote(j[3], window)
end

-- Return a running line to a lane for retries, which is claimed before new lines.
local function requeue(job, lane)
  local key = P .. 'job:' .. job
  local j = redis.call('HMGET', key, 'sid', 'slane')
  remove_entry(j[2], j[1])
  local sid = redis.call('XADD', P .. 'lane:' .. lane, '*', 'j', job)
  redis.call('HDEL', key, 'owner')
  redis.call('HSET', key, 'state', 'queued', 'sid', sid, 'slane', lane)
end

-- Delete the record of a file; its bytes stay on the volume while another record refers to them.
local function remove_file(id)
  local f = get('file', id, 'tenant', 'sha256')
  redis.call('DEL', P .. 'file:' .. id)
  redis.call('ZREM', P .. 'expiries', id)
  if not f[1] then return end
  redis.call('ZREM', P .. 'files:' .. f[1], id)
  redis.call('SREM', P .. 'blob:' .. f[2], id)
end
