-- Write one part of a change to a shard's table; the last part moves the stamp.
-- KEYS: accounts, meta.
-- ARGV: token, after, stamp, as_of, last, complete ('1' or '0' each), part (0 is the first), cluster, topic, topic_id,
--       shards, number of accounts to remove, those accounts, then account and row by turns.
-- Returns 'applied', 'ignored' (the table is there already), 'fenced' or 'lost' (it is not where its writer left it).
-- A stamp that the table has already confirms it: nothing of the log before as_of is missing.
local token, after, stamp = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local meta = redis.call('HMGET', KEYS[2],
  'token', 'stamp', 'writing', 'cluster', 'topic', 'topic_id', 'shards', 'rows', 'part')
if not meta[1] then return 'lost' end
if meta[4] ~= ARGV[8] or meta[5] ~= ARGV[9] or meta[6] ~= ARGV[10] or meta[7] ~= ARGV[11] then return 'fenced' end
if tonumber(meta[1]) > token then return 'fenced' end
if tonumber(meta[1]) < token or tonumber(meta[2]) < after then return 'lost' end
if tonumber(meta[8]) ~= redis.call('HLEN', KEYS[1]) then return 'lost' end
local now = redis.call('TIME')
local updated_at = now[1] .. string.format('%03d', math.floor(tonumber(now[2]) / 1000))
if tonumber(meta[2]) >= stamp then
  if tonumber(meta[2]) == stamp and ARGV[6] == '1' then
    redis.call('HSET', KEYS[2], 'as_of', ARGV[4], 'updated_at', updated_at)
    redis.call('HDEL', KEYS[2], 'building')
  end
  return 'ignored'
end
-- The parts before this one must be there: Redis may have gone back to a snapshot in between, with a stamp as it was.
local part = tonumber(ARGV[7])
if part > 0 and meta[9] ~= ARGV[3] .. ':' .. (part - 1) and meta[9] ~= ARGV[3] .. ':' .. part then return 'lost' end

local SLICE = 4000 -- what Lua's unpack takes at once, and an even number
local first = 13 + tonumber(ARGV[12])
for at = 13, first - 1, SLICE do
  redis.call('HDEL', KEYS[1], unpack(ARGV, at, math.min(at + SLICE, first) - 1))
end
for at = first, #ARGV, SLICE do
  redis.call('HSET', KEYS[1], unpack(ARGV, at, math.min(at + SLICE - 1, #ARGV)))
end

redis.call('HSET', KEYS[2], 'rows', redis.call('HLEN', KEYS[1]), 'updated_at', updated_at)
local writing = tonumber(meta[3] or '0')
if ARGV[5] == '1' then
  redis.call('HSET', KEYS[2], 'stamp', ARGV[3], 'as_of', ARGV[4])
  redis.call('HDEL', KEYS[2], 'part')
  if writing <= stamp then redis.call('HDEL', KEYS[2], 'writing') end
  if ARGV[6] == '1' then redis.call('HDEL', KEYS[2], 'building') end
else
  redis.call('HSET', KEYS[2], 'writing', string.format('%.0f', math.max(writing, stamp)), 'part', ARGV[3] .. ':' .. part)
end
return 'applied'
