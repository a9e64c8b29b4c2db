#!lua flags=allow-oom
-- Delete a file of a tenant.
-- ARGV: file, tenant -> 0: the tenant has no such file
if redis.call('HGET', P .. 'file:' .. ARGV[1], 'tenant') ~= ARGV[2] then return 0 end
remove_file(ARGV[1])
return 1
