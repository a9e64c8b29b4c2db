#!lua flags=allow-oom
-- Lease the batch that has been due longest. The new fencing token makes earlier leases stale.
-- ARGV: lease in ms -> {batch, fencing token}, or {}
local t = now()
while true do
  local batch = redis.call('ZRANGEBYSCORE', DUE, '-inf', t, 'LIMIT', 0, 1)[1]
  if not batch then return {} end
  if redis.call('EXISTS', P .. 'batch:' .. batch) == 1 then
    redis.call('ZADD', DUE, t + ARGV[1], batch)
    return {batch, redis.call('HINCRBY', P .. 'batch:' .. batch, 'fence', 1)}
  end
  redis.call('ZREM', DUE, batch)
end
