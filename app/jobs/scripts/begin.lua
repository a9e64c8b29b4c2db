#!lua
-- validating -> in_progress, or -> failed with the errors of its lines.
-- ARGV: batch, fence, errors as JSON or ''
local batch, key = ARGV[1], P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'fence', 'status', 'total', 'tenant', 'retention_ms')
if b[1] ~= ARGV[2] or b[2] ~= 'validating' then return 0 end
local t = now()
if ARGV[3] == '' then
  redis.call('HSET', key, 'status', 'in_progress', 'in_progress_ms', t)
else
  count_down(b[4], number(b[3]))
  redis.call('HSET', key, 'status', 'failed', 'failed_ms', t, 'errors', ARGV[3], 'remaining', 0,
    'forget_ms', t + b[5])
end
return 1
