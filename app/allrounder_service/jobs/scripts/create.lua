#!lua
-- Admission control of a new batch. Idempotent by its id and by the idempotency key, which may be
-- used again once its batch is deleted.
-- ARGV: batch, tenant, lines, max lines of all, of a tenant, idempotency key, body digest,
--       its lifetime in s, time to run in ms, retention in ms, digest of the input, pairs of fields
local batch, tenant, lines = ARGV[1], ARGV[2], tonumber(ARGV[3])
local idem = P .. 'idem:' .. tenant .. ':' .. ARGV[6]
if ARGV[6] ~= '' then
  local old = redis.call('HMGET', idem, 'id', 'digest')
  if old[1] and redis.call('EXISTS', P .. 'batch:' .. old[1]) == 1 then
    return {old[2] == ARGV[7] and 'same' or 'conflict', old[1]}
  end
end
if redis.call('EXISTS', P .. 'batch:' .. batch) == 1 then return {'same', batch} end
-- Ended lines take as much memory as others until their batch is cleaned up.
local held = number(redis.call('GET', P .. 'held'))
if held + lines > tonumber(ARGV[4]) then return {'full', tostring(held)} end
local own = number(redis.call('HGET', P .. 'depth', tenant))
if own + lines > tonumber(ARGV[5]) then return {'tenant_full', tostring(own)} end
local t = now()
redis.call('HSET', P .. 'batch:' .. batch, 'status', 'validating', 'tenant', tenant,
  'total', lines, 'remaining', lines, 'submitted', 0, 'next', 0, 'completed', 0, 'failed', 0, 'fence', 0,
  'ending', '', 'created_ms', t, 'expires_ms', t + ARGV[9], 'retention_ms', ARGV[10], 'swept', 0,
  'input_sha256', ARGV[11], unpack(ARGV, 12))
redis.call('SADD', P .. 'blob:' .. ARGV[11], batch)
if ARGV[6] ~= '' then
  redis.call('HSET', idem, 'id', batch, 'digest', ARGV[7])
  redis.call('EXPIRE', idem, ARGV[8])
end
reduce_depth(tenant, 0 - lines)
redis.call('INCRBY', P .. 'held', lines)
redis.call('ZADD', P .. 'batches:' .. tenant, t, batch)
redis.call('ZADD', DUE, t, batch)
return {'ok', batch}
