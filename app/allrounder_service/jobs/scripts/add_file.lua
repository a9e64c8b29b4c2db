#!lua
-- Record a file whose bytes are on the volume. Idempotent by its id.
-- ARGV: file, tenant, digest of the bytes, lifetime in s or 0, pairs of fields -> the time in s
local id, tenant, t = ARGV[1], ARGV[2], now()
local key = P .. 'file:' .. id
local old = redis.call('HGET', key, 'created_at')
if old then return tonumber(old) end
local seconds = math.floor(t / 1000)
local expires = number(ARGV[4]) > 0 and seconds + ARGV[4] or 0
redis.call('SADD', P .. 'blob:' .. ARGV[3], id)
redis.call('HSET', key, 'tenant', tenant, 'sha256', ARGV[3], 'created_at', seconds,
  'expires_at', expires, unpack(ARGV, 5))
redis.call('ZADD', P .. 'files:' .. tenant, t, id)
if expires > 0 then redis.call('ZADD', P .. 'expiries', expires, id) end
return seconds
