#!lua flags=allow-oom
-- validating -> in_progress, or -> failed with the errors of its lines.
-- ARGV: batch, fencing token, errors as JSON or '' -> 1 done, 2 repeated, 0 refused
local batch, key = ARGV[1], P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'fence', 'status', 'total', 'tenant', 'retention_ms', 'ending')
local target = ARGV[3] == '' and 'in_progress' or 'failed'
if b[1] ~= ARGV[2] or b[6] ~= '' then return 0 end
if b[2] == target then return 2 end
if b[2] ~= 'validating' then return 0 end
local t = now()
redis.call('HSET', key, 'status', target, target .. '_ms', t)
if target == 'failed' then
  reduce_depth(b[4], number(b[3]))
  redis.call('HSET', key, 'errors', ARGV[3], 'remaining', 0, 'forget_ms', t + b[5])
elseif number(b[3]) == 0 then
  lines_ended(batch)
end
return 1
