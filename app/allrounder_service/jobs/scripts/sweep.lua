#!lua flags=allow-oom
-- Let the jobs of an ended batch expire; its files hold every result.
-- ARGV: batch, fencing token, number of the first line, how many, lifetime in s
-- -> 1 when all are done, 0 when more are left, -1 refused
local batch, key = ARGV[1], P .. 'batch:' .. ARGV[1]
local b = redis.call('HMGET', key, 'fence', 'forget_ms', 'submitted', 'input_sha256', 'swept', 'total')
if b[1] ~= ARGV[2] or not b[2] then return -1 end
local first = tonumber(ARGV[3])
local last = math.min(first + ARGV[4], number(b[3]))
for line = first, last - 1 do redis.call('EXPIRE', P .. 'job:' .. batch .. '/' .. line, ARGV[5]) end
if last < number(b[3]) then return 0 end
if b[5] == '0' and redis.call('DECRBY', P .. 'held', b[6]) <= 0 then
  redis.call('DEL', P .. 'held')
end
redis.call('HSET', key, 'swept', 1)
-- Nothing reads the input again, so the reference ends: a file that the caller deleted can go.
redis.call('SREM', P .. 'blob:' .. b[4], batch)
return 1
