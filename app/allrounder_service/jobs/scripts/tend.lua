#!lua flags=allow-oom
-- Take the batch that has waited longest for a steward. Who took it before is fenced off.
-- ARGV: lease in ms
local t = now()
while true do
  local batch = redis.call('ZRANGEBYSCORE', P .. 'care', '-inf', t, 'LIMIT', 0, 1)[1]
  if not batch then return {} end
  if redis.call('EXISTS', P .. 'batch:' .. batch) == 1 then
    redis.call('ZADD', P .. 'care', t + ARGV[1], batch)
    return {batch, redis.call('HINCRBY', P .. 'batch:' .. batch, 'fence', 1)}
  end
  redis.call('ZREM', P .. 'care', batch)
end
