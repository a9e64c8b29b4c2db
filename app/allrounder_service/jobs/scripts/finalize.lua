#!lua flags=allow-oom
-- End a batch whose files are on the volume, and record the files.
-- ARGV: batch, fencing token, time to keep its files in s or 0, usage as JSON,
--       then for each file: its field, id, name, bytes, sha256, lines
-- -> 1 done, 2 repeated, 0 refused
local batch, key = ARGV[1], P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'fence', 'status', 'remaining', 'ending', 'tenant',
  'retention_ms', 'forget_ms')
if b[1] ~= ARGV[2] or number(b[3]) ~= 0 then return 0 end
if b[7] and b[2] ~= 'failed' then return 2 end
if b[2] ~= 'finalizing' and b[2] ~= 'cancelling' then return 0 end
local t = now()
local seconds = math.floor(t / 1000)
local expires = number(ARGV[3]) > 0 and seconds + ARGV[3] or 0
for i = 5, #ARGV, 6 do
  local id = ARGV[i + 1]
  redis.call('HSET', key, ARGV[i], id)
  redis.call('HSET', P .. 'file:' .. id, 'tenant', b[5], 'purpose', 'batch_output',
    'filename', ARGV[i + 2], 'bytes', ARGV[i + 3], 'sha256', ARGV[i + 4], 'lines', ARGV[i + 5],
    'created_at', seconds, 'expires_at', expires)
  redis.call('SADD', P .. 'blob:' .. ARGV[i + 4], id)
  redis.call('ZADD', P .. 'files:' .. b[5], t, id)
  if expires > 0 then redis.call('ZADD', P .. 'expiries', expires, id) end
end
local status = b[4] ~= '' and b[4] or 'completed'
redis.call('HSET', key, 'status', status, status .. '_ms', t, 'usage', ARGV[4],
  'forget_ms', t + b[6])
return 1
