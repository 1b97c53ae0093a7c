-- Take a shard's table for one owner.
-- KEYS: accounts, meta.  ARGV: token, clear ('1' or '0'), cluster, topic, topic_id, shards.
-- Returns {outcome, stamp, as_of}; outcome is 'opened', 'cleared' or 'fenced' (then followed by the newer token).
local token, clear = tonumber(ARGV[1]), ARGV[2] == '1'
local meta = redis.call('HMGET', KEYS[2],
  'token', 'stamp', 'as_of', 'cluster', 'topic', 'topic_id', 'shards', 'rows')
local ours = meta[1] and meta[4] == ARGV[3] and meta[5] == ARGV[4] and meta[6] == ARGV[5] and meta[7] == ARGV[6]
-- A token is an offset of the owner's log: it says nothing about the owner of a copy of another log.
if ours and tonumber(meta[1]) > token then return {'fenced', meta[1]} end
local whole = ours and tonumber(meta[8]) == redis.call('HLEN', KEYS[1]) -- Redis may evict a key by itself
if whole and not clear then
  redis.call('HSET', KEYS[2], 'token', ARGV[1])
  return {'opened', meta[2], meta[3]}
end
redis.call('UNLINK', KEYS[1], KEYS[2])
redis.call('HSET', KEYS[2], 'token', ARGV[1], 'stamp', '0', 'as_of', '0', 'rows', '0', 'building', '1',
  'cluster', ARGV[3], 'topic', ARGV[4], 'topic_id', ARGV[5], 'shards', ARGV[6])
return {'cleared', '0', '0'}
