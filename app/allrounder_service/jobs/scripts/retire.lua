#!lua flags=allow-oom
-- A worker claims no more lines: another may run suspect lines at once.
-- ARGV: worker
redis.call('ZREM', P .. 'workers', ARGV[1])
if redis.call('GET', P .. 'solo') == ARGV[1] then redis.call('DEL', P .. 'solo') end
return 1
