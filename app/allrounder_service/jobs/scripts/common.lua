-- Shared by every script; put before each. Times are the server's own, in milliseconds.
local P = 'vq:{v}:'
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

-- One line fewer of the tenant waits in the lane.
local function leave_window(tenant)
  if redis.call('HINCRBY', P .. 'window', tenant, -1) <= 0 then
    redis.call('HDEL', P .. 'window', tenant)
  end
end

-- Fill the tenant's window in the lane from its backlog: the batches that have lines beyond it.
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

-- `0 - lines`, for `-lines` of 0 would be sent as "-0", which is no integer to Redis.
local function count_down(tenant, lines)
  if redis.call('HINCRBY', P .. 'depth', tenant, 0 - lines) <= 0 then
    redis.call('HDEL', P .. 'depth', tenant)
  end
  redis.call('HINCRBY', P .. 'depth', ':all', 0 - lines)
end

-- No more lines of the batch shall start: what is not in Redis yet ends here, the steward
-- withdraws the others. `status` is the batch's from now on.
local function call_off(batch, ending, status)
  local key = P .. 'batch:' .. batch
  local b = redis.call('HMGET', key, 'tenant', 'total', 'submitted')
  local withheld = number(b[2]) - number(b[3])
  redis.call('HSET', key, 'status', status, 'ending', ending, 'withheld', withheld)
  redis.call('LREM', P .. 'backlog:' .. b[1], 0, batch)
  count_down(b[1], withheld)
  redis.call('HINCRBY', key, 'failed', withheld)
  return redis.call('HINCRBY', key, 'remaining', 0 - withheld)
end

-- Take the entry out of the lane it is in. Acknowledging alone would let the lane grow for ever.
local function take_out(lane, sid)
  redis.call('XACK', P .. 'lane:' .. lane, 'g', sid)
  redis.call('XDEL', P .. 'lane:' .. lane, sid)
end

-- When a steward must look at the batch next.
local function due(batch, poll_ms)
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

-- Every line has ended: the steward's turn. A batch that is being cancelled keeps that status.
local function settle(batch)
  local key = P .. 'batch:' .. batch
  if redis.call('HGET', key, 'status') == 'in_progress' then
    redis.call('HSET', key, 'status', 'finalizing', 'finalizing_ms', now())
  end
  redis.call('ZADD', P .. 'care', now(), batch)
end

-- The one way a line ends. `good`: its answer belongs in the output file.
local function publish(job, state, result, good, window)
  local key = P .. 'job:' .. job
  local j = redis.call('HMGET', key, 'sid', 'slane', 'tenant', 'batch', 'state')
  if j[1] then
    take_out(j[2], j[1])
    if j[2] == 'batch' and j[5] == 'queued' then leave_window(j[3]) end
  end
  redis.call('HDEL', key, 'sid', 'slane', 'owner')
  redis.call('HSET', key, 'state', state, 'result', result, 'ended_ms', now())
  redis.call('HINCRBY', key, 'published', 1)
  count_down(j[3], 1)
  local batch = P .. 'batch:' .. j[4]
  redis.call('HINCRBY', batch, good and 'completed' or 'failed', 1)
  if redis.call('HINCRBY', batch, 'remaining', -1) == 0 then settle(j[4]) end
  promote(j[3], window)
end

-- Put a line that was running back to wait, in a lane that goes before new work.
local function requeue(job, lane)
  local key = P .. 'job:' .. job
  local j = redis.call('HMGET', key, 'sid', 'slane')
  take_out(j[2], j[1])
  local sid = redis.call('XADD', P .. 'lane:' .. lane, '*', 'j', job)
  redis.call('HDEL', key, 'owner')
  redis.call('HSET', key, 'state', 'queued', 'sid', sid, 'slane', lane)
end

-- Forget a file; its bytes stay on the volume as long as somebody else needs them.
local function remove_file(id)
  local f = get('file', id, 'tenant', 'sha256')
  redis.call('DEL', P .. 'file:' .. id)
  redis.call('ZREM', P .. 'expiries', id)
  if not f[1] then return end
  redis.call('ZREM', P .. 'files:' .. f[1], id)
  redis.call('SREM', P .. 'blob:' .. f[2], id)
end
