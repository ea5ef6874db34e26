"""The Lua that runs within Redis: a channel's messages are numbered, kept and sent in one step.

Keys of a channel, all in one hash slot (the tag is its live subject, which is also the slot of the
sharded channel of that name):

    {<live>}:s   stream; an entry `<offset>-<µs>` has `b`, the body, and `p`, the offset before it
    {<live>}:m   hash: e epoch, o the offset given last, l the one stored last, r the server's run,
                 t a time that no entry is older than, g when the present ids began, h and k the
                 ends of the last hole
    {<live>}:i   hash: the ids stored lately, with their offsets; {<live>}:j the ones before them

Every key expires. The epoch lasts for as long as the hash: at least META_S after the last write,
read or subscription, which is longer than any message is kept.

What a restart or failover may have lost is seen by `r`. A server without an append-only file comes
back with an older state or none: the epoch is another then. With one, the epoch goes on, but
offsets leap over those that may have been given after the last one that was kept: none is given
twice.
"""

import hashlib
from typing import Final, NamedTuple

__all__ = [
    "LEAP",
    "MAX_IDS",
    "META_S",
    "PUBLISH_SHARDED",
    "PURGE",
    "READ",
    "SCRIPTS",
    "STORE",
    "WINDOW_S",
    "Script",
    "make_script",
]

META_S: Final = 86_400
WINDOW_S: Final = 120
"""A message id is remembered for this long at least, and at most twice as long, as NATS does by
default; on a channel with more than MAX_IDS in that time the oldest are forgotten sooner."""
MAX_IDS: Final = 100_000
LEAP: Final = 1 << 20


class Script(NamedTuple):
    """Lua, and the SHA-1 under which a server that has seen it knows it."""

    text: str
    sha: str


def make_script(text: str, flags: str = "") -> Script:
    """With its first line, Redis refuses a script when memory is full, before its first write."""
    text = f"#!lua{flags}\n{text}"
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_BEGIN: Final = (
    """
local stream, meta, ids, older = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local new_epoch, run, durable, age, keep = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local function text(n) return string.format('%.0f', n) end
local t = redis.call('TIME')
local now = tonumber(t[1]) * 1000000 + tonumber(t[2])
local m = redis.call('HMGET', meta, 'e', 'o', 'l', 'r', 't', 'g', 'h', 'k')
local epoch, given, last, oldest = m[1], tonumber(m[2]), tonumber(m[3]), tonumber(m[5])
if not epoch or (m[4] ~= run and durable ~= '1') then
  epoch, given, last, oldest = new_epoch, 0, 0, now
  m = {}
  redis.call('DEL', stream, ids, older, meta)
  redis.call('HSET', meta, 'e', epoch, 'o', 0, 'l', 0, 'r', run, 't', text(now))
elseif m[4] ~= run then
  m[7], m[8] = text(last), text(given + LEAP)
  given = given + LEAP
  redis.call('HSET', meta, 'o', text(given), 'r', run, 'h', m[7], 'k', m[8])
end
local limit = now - tonumber(age) * 1000000
if oldest <= limit then
  oldest = now
  while true do
    local e = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    if not e then break end
    local written = tonumber(string.match(e[1], '-(%d+)$'))
    if written > limit then oldest = written break end
    redis.call('XDEL', stream, e[1])
  end
  redis.call('HSET', meta, 't', text(oldest))
end
redis.call('EXPIRE', meta, keep)
"""
).replace("LEAP", str(LEAP))

_SEND: Final = """
local function send(channel, frame, sharded, run)
  if sharded ~= '1' then
    redis.call('PUBLISH', channel, frame)
    return
  end
  redis.call('SPUBLISH', channel, frame)
  -- A filter listens on every node, and takes what comes from the node that it listens on: a
  -- PUBLISH, which the whole cluster hears, is for the one case that somebody has a filter.
  if redis.call('PUBSUB', 'NUMPAT') > 0 then
    redis.call('PUBLISH', channel, table.concat({'\\0ebn', run, frame}, ' '))
  end
end
"""

STORE: Final = make_script(
    _SEND
    + _BEGIN
    + """
local channel, sharded, body, id = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local count, window, most = ARGV[10], tonumber(ARGV[11]), tonumber(ARGV[12])
local known = redis.call('HGET', ids, id) or redis.call('HGET', older, id)
if known then return {epoch, known, 1} end
local began = tonumber(m[6] or 0)
if now - began >= window * 1000000 or redis.call('HLEN', ids) >= most then
  if redis.call('EXISTS', ids) == 1 then redis.call('RENAME', ids, older) end
  began = now
end
local offset, before = text(given + 1), text(last)
redis.call('HSET', ids, id, offset)
if redis.call('HLEN', ids) == 1 then redis.call('EXPIRE', ids, 2 * window) end
local micros = text(now)
redis.call('XADD', stream, 'MAXLEN', '=', count, offset .. '-' .. micros, 'b', body, 'p', before)
redis.call('EXPIRE', stream, math.ceil(tonumber(age)))
redis.call('HSET', meta, 'o', offset, 'l', offset, 'g', text(began))
send(channel, table.concat({'\\0eb1', epoch, offset, before, micros, body}, ' '), sharded, run)
return {epoch, offset, 0}
"""
)
"""Store and send one message; gives the epoch, the offset, and whether its id was known."""

READ: Final = make_script(
    _BEGIN
    + """
local after, count = ARGV[6], tonumber(ARGV[7])
redis.call('XTRIM', stream, 'MAXLEN', '=', ARGV[8])
local entries, complete = {}, 1
if after == '' then
  if count > 0 then
    entries = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', count)
  end
else
  local a = tonumber(after)
  if a < last then
    local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    local before = last
    if first then
      for i = 1, #first[2], 2 do
        if first[2][i] == 'p' then before = tonumber(first[2][i + 1]) end
      end
    end
    if a < before then complete = 0 end
    if count > 0 then
      entries = redis.call('XRANGE', stream, text(a + 1) .. '-0', '+', 'COUNT', count)
    end
  end
  if m[7] and a > tonumber(m[7]) and a < tonumber(m[8]) then complete = 0 end
end
return {epoch, text(given), complete, entries}
""",
    " flags=allow-oom",
)
"""What is kept; gives the epoch, the offset given last, whether nothing is missing, the entries."""

PURGE: Final = make_script(
    "local count = redis.call('XLEN', KEYS[1]) redis.call('DEL', KEYS[1]) return count",
    " flags=allow-oom",
)
"""Drop a channel's stream; gives how many entries it had. Offsets go on, being the hash's."""

PUBLISH_SHARDED: Final = make_script(
    _SEND + "send(ARGV[1], ARGV[2], '1', ARGV[3]) return 1", " flags=allow-oom"
)
"""Send one message, on a cluster, to its shard, and to filters where there are any.

It has no key: while a slot is moved, a key that is not there would send it to the slot's next node,
and the listeners are still at the present one.
"""

SCRIPTS: Final = (STORE, READ, PURGE, PUBLISH_SHARDED)
