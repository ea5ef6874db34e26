"""The Lua scripts that run in Redis: they number, store and send a channel's messages in one step.

Keys of a channel, all in one hash slot (the tag is its live subject, which is also the slot of the
sharded channel of that name):

    {<live>}:s   stream; an entry `<offset>-<µs>` has `b`, the body, and `p`, the offset before it
    {<live>}:m   hash: e epoch, l and o the last assigned offset, r the run of the server that did,
                 t a time that no entry is older than, g when the present ids began, f where the
                 epoch begins; n and a, how many messages are kept and for how many seconds, and nw
                 and aw, until when that holds against writers who would keep less
    {<live>}:i   hash: the recently stored ids, with their offsets; {<live>}:j the ones before them

And one key of the namespace, on a cluster one of each hash slot in use:

    {<root>}:e   hash: e the epoch of channels that have no key, t when it was made, r the run

Only writers write: a read changes nothing, creates no key and extends no key's life. The first
subscription of a namespace creates the one key that all channels without messages share.

The first offset of a channel is `now - t`, in microseconds; each further one is one higher. It
jumps to `now - t` again when another run of a server has the channel, which may have lost some of
it. So no offset is assigned twice in one epoch. Each entry names the one before it (0: it is the
channel's first), so that a reader with an offset that the stream does not have is detected.

The epoch changes when messages may be lost that somebody has seen, or that were acknowledged: the
server is a promoted replica, or keeps no append-only file and was restarted; or a caller has seen
an offset that the stream does not have. Then the remaining messages are kept, offsets continue, and
the epoch `a-b` becomes `a-c`. When everything is lost, `a` changes, too.
"""

import hashlib
from typing import (
    Final,
    NamedTuple,
)

__all__ = [
    "BASE_S",
    "FOUND",
    "MAX_IDS",
    "META_S",
    "PROBE",
    "PUBLISH_SHARDED",
    "PURGE",
    "READ",
    "RENEW",
    "REPAIR",
    "SCRIPTS",
    "START_STEP",
    "STORE",
    "WINDOW_S",
    "Script",
    "make_script",
]


META_S: Final = 7 * 86_400
"""A channel's epoch is stored for at least this long after its last message."""
BASE_S: Final = 366 * 86_400
WINDOW_S: Final = 120
"""A message id is remembered for at least this long, and at most twice as long, as NATS does by
default. On a channel with more than MAX_IDS in that time, the oldest are forgotten sooner."""
MAX_IDS: Final = 100_000
START_STEP: Final = 2**36
"""The position of a channel without messages is a multiple of this: 19 hours, in microseconds."""


class Script(NamedTuple):
    """Lua, and the SHA-1 by which servers cache it."""

    text: str
    sha: str


def make_script(text: str, flags: str = "") -> Script:
    """A script. Its first line makes Redis refuse it before the first write if memory is full."""
    text = f"#!lua{flags}\n{text}"
    return Script(text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


_COMMON: Final = (
    (
        """
local stream, meta, ids, older, base = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local fresh, run, durable = ARGV[1], ARGV[2], ARGV[3]
local clock = redis.call('TIME')
local now = tonumber(clock[1]) * 1000000 + tonumber(clock[2])
local function text(n) return string.format('%.0f', n) end
local function is_epoch(e) return e and #e <= 64 and string.find(e, '^[0-9a-z-]+$') end
local function renewed(epoch, by)
  return string.match(epoch, '^[^-]*') .. '-' .. string.sub(redis.sha1hex(epoch .. by), 1, 8)
end
local function follow(epoch, r)
  if r == run or durable == '1' then return epoch end
  return renewed(epoch, run)
end
local function get_base()
  local found = redis.pcall('HMGET', base, 'e', 't', 'r')
  if found.err or not is_epoch(found[1]) or not tonumber(found[2]) then return nil end
  return {e = follow(found[1], found[3]), t = tonumber(found[2]), r = found[3]}
end
local function of(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return entry[2][i + 1] end
  end
end
local function offset_of(entry) return tonumber(string.match(entry[1], '^%d+')) end
local function micros_of(entry) return tonumber(string.match(entry[1], '%d+$')) end
local START, META = START_STEP, META_US
"""
    )
    .replace("START_STEP", str(START_STEP))
    .replace("META_US", str(META_S * 1_000_000))
)

_WRITE: Final = """
local function make_base()
  local found = get_base()
  if found then
    if found.r ~= run then redis.call('HSET', base, 'e', found.e, 'r', run) end
    return found
  end
  redis.call('DEL', base)
  redis.call('HSET', base, 'e', fresh, 't', text(now), 'r', run)
  redis.call('EXPIRE', base, BASE_S)
  return {e = fresh, t = now, r = run}
end
""".replace("BASE_S", str(BASE_S))

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
    + _COMMON
    + _WRITE
    + """
local seen_epoch, seen = ARGV[4], tonumber(ARGV[5])
local channel, sharded, body, id = ARGV[6], ARGV[7], ARGV[8], ARGV[9]
local count, age = tonumber(ARGV[10]), tonumber(ARGV[11])
local window, most = tonumber(ARGV[12]), tonumber(ARGV[13])
local m = redis.call('HMGET', meta, 'e', 'l', 'r', 't', 'g', 'f', 'n', 'nw', 'a', 'aw', 'o')
local epoch, last, floor = m[1], tonumber(m[2]), tonumber(m[6]) or 0
local given, oldest
if is_epoch(epoch) and last then
  local known = redis.call('HGET', ids, id) or redis.call('HGET', older, id)
  oldest, given = tonumber(m[4]) or 0, math.max(last, tonumber(m[11]) or 0)
  local e = follow(epoch, m[3])
  if e == epoch and seen_epoch == epoch and seen > last then e = renewed(epoch, fresh) end
  if e ~= epoch then epoch, floor = e, last end
  if known then return {epoch, known, 1} end
  if m[3] ~= run or e ~= m[1] then
    local at = now - make_base().t
    given = at > given and at or given + 1000000
  end
else
  local b = make_base()
  redis.call('DEL', stream, ids, older, meta)
  m = {}
  epoch, last, floor, oldest = b.e, 0, 0, now
  if seen_epoch == epoch then epoch = renewed(epoch, fresh) end
  given = math.max(now - b.t, 0)
end

-- What of the hash changes seldom.
local changes = {}
local function change(name, value)
  changes[#changes + 1] = name
  changes[#changes + 1] = value
end
if epoch ~= m[1] or run ~= m[3] or not m[6] then
  change('e', epoch) change('r', run) change('f', text(floor))
end

-- Of writers that would keep a message for different times, the one who keeps it longest decides,
-- until what he wrote last is older than that. (That time is set ahead, so that it is seldom set.)
local micro_age = age * 1000000
local kept_age, kept = tonumber(m[9]), tonumber(m[7])
local age_until, kept_until = tonumber(m[10]) or 0, tonumber(m[8]) or 0
if kept_age and kept_age > age and age_until > now then age = kept_age
elseif kept_age ~= age or age_until < now + micro_age then
  change('a', tostring(age)) change('aw', text(now + 1.25 * micro_age))
end
if kept and kept > count and kept_until > now then count = kept
elseif kept ~= count or kept_until < now + micro_age then
  change('n', text(count)) change('nw', text(now + 1.25 * micro_age))
end

local limit = now - age * 1000000
if oldest <= limit then
  oldest = now
  while true do
    local e = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
    if not e then break end
    local written = micros_of(e)
    if written > limit then oldest = written break end
    redis.call('XDEL', stream, e[1])
  end
end
if oldest ~= tonumber(m[4]) then change('t', text(oldest)) end
local offset, before, micros = text(given + 1), text(last), text(now)
-- This may fail, for what others have put into the stream: nothing before it needs to be undone.
redis.call('XADD', stream, 'MAXLEN', '=', text(count), offset .. '-' .. micros,
  'b', body, 'p', before)
redis.call('EXPIRE', stream, math.ceil(age))
local began = tonumber(m[5]) or 0
if now - began >= window * 1000000 or redis.call('HLEN', ids) >= most then
  if redis.call('EXISTS', ids) == 1 then redis.call('RENAME', ids, older) end
  redis.call('EXPIRE', base, BASE_S)
  change('g', micros)
end
redis.call('HSET', ids, id, offset)
if redis.call('HLEN', ids) == 1 then redis.call('EXPIRE', ids, 2 * window) end
redis.call('HSET', meta, 'l', offset, 'o', offset, unpack(changes))
if #changes > 0 then
  redis.call('EXPIRE', meta, math.max(META / 1000000, math.ceil(2 * age)))
end
send(channel, table.concat({'\\0eb1', epoch, offset, before, micros, body}, ' '), sharded, run)
return {epoch, offset, 0}
""".replace("BASE_S", str(BASE_S))
)
"""Store and send one message; returns the epoch, the offset, and whether its id was known."""

READ: Final = make_script(
    _COMMON
    + """
local after, count = ARGV[4], tonumber(ARGV[5])
local a = tonumber(after)
-- Whether a channel that began at this offset was never there before since the position `a`.
local function is_first(offset) return a % START == 0 and offset - a <= META end
local m = redis.pcall('HMGET', meta, 'e', 'l', 'r', 't', 'f', 'a')
if m.err or not is_epoch(m[1]) or not tonumber(m[2]) then
  local b = get_base()
  if not b then return {fresh, '0', 1, {}, 0} end
  local at = math.max(now - b.t, 0)
  local complete = (not a or is_first(at)) and 1 or 0
  return {b.e, text(at - at % START), complete, {}, 1}
end
local epoch, last, floor = follow(m[1], m[3]), tonumber(m[2]), tonumber(m[5]) or 0
if epoch ~= m[1] then floor = last end
local upto = text(last) .. '-18446744073709551615'
local function range(from, most)
  local found = redis.pcall('XRANGE', stream, text(from), upto, 'COUNT', most)
  return found.err and {} or found
end
-- What is past its age is not given, and is removed by who writes next.
local limit = m[6] and now - (tonumber(m[6]) or 0) * 1000000 or 0
local alive = 0
if (tonumber(m[4]) or 0) <= limit then
  alive = last + 1
  local head = range(0, 1)[1]
  local dead = head and offset_of(head) - 1 or last
  while alive - dead > 1 do
    local middle = math.floor((dead + alive) / 2)
    local e = range(middle, 1)[1]
    if not e or micros_of(e) > limit then alive = middle else dead = offset_of(e) end
  end
end
if not a then
  if count == 0 or alive > last then return {epoch, text(last), 1, {}, 1} end
  local found = redis.pcall('XREVRANGE', stream, upto, text(alive), 'COUNT', count)
  return {epoch, text(last), 1, found.err and {} or found, 1}
end
local entries, complete = {}, 1
if a < last then
  entries = range(math.max(a + 1, alive), math.max(count, 1))
  local head = entries[1]
  local before = head and tonumber(of(head, 'p'))
  if a < floor or not before then complete = 0
  elseif before ~= a and offset_of(head) ~= a + 1
    and not (before == 0 and is_first(offset_of(head))) then complete = 0 end
  if count == 0 then entries = {} end
end
return {epoch, text(last), complete, entries, 1}
""",
    " flags=no-writes",
)
"""Read stored messages, without changing anything.

Returns the epoch, the last assigned offset, whether nothing is missing, the entries, and whether
others know the epoch, too: not if nobody has ever written or subscribed.
"""

FOUND: Final = make_script(_COMMON + _WRITE + "make_base() return 1")
"""Store an epoch for channels without messages."""

RENEW: Final = make_script(
    _COMMON
    + _WRITE
    + """
local m = redis.call('HMGET', meta, 'e', 'l', 'f')
local epoch, last, seen = m[1], tonumber(m[2]), tonumber(ARGV[5])
if not (is_epoch(epoch) and last) then
  -- The whole channel is gone. A position in a channel without messages has lost nothing.
  local b = make_base()
  if b.e ~= ARGV[4] or seen % START == 0 then return 0 end
  local given = text(math.max(now - b.t, seen))
  redis.call('DEL', stream, ids, older, meta)
  redis.call('HSET', meta, 'e', renewed(b.e, fresh), 'l', given, 'f', given, 'o', given, 'r', run)
  redis.call('EXPIRE', meta, META / 1000000)
  return 1
end
if epoch ~= ARGV[4] or seen <= (tonumber(m[3]) or 0) then return 0 end
if seen <= last then
  if seen == last then return 0 end
  local upto = text(last) .. '-18446744073709551615'
  local head = redis.call('XRANGE', stream, text(seen + 1), upto, 'COUNT', 1)[1]
  local before = head and tonumber(of(head, 'p'))
  if not before or before >= seen or (before == 0 and seen % START == 0) then return 0 end
end
local given = math.max(last, now - make_base().t)
redis.call('HSET', meta, 'e', renewed(epoch, fresh), 'f', text(last), 'o', text(given), 'r', run)
return 1
"""
)
"""Start another epoch if the stream lost an offset that the caller knows; returns whether it did.

It asks the stream itself, so it is harmless if the caller is mistaken.
"""

REPAIR: Final = make_script(
    _COMMON
    + """
local aside = 0
local function put_aside(key)
  redis.call('RENAME', key, key .. 'x')
  redis.call('EXPIRE', key .. 'x', 86400)
  aside = aside + 1
end
for _, key in ipairs({base, ids, older}) do
  if redis.pcall('HMGET', key, 'e').err then put_aside(key) end
end
local m = redis.pcall('HMGET', meta, 'l', 'a', 'o')
if m.err then put_aside(meta) m = {} end
if redis.call('EXISTS', stream) == 1 then
  put_aside(stream)
  local last = math.max(tonumber(m[1]) or 0, tonumber(m[3]) or 0)
  local upto = text(last) .. '-18446744073709551615'
  local entries = last > 0 and redis.pcall('XRANGE', stream .. 'x', '-', upto) or {}
  if entries.err then entries = {} end
  for _, e in ipairs(entries) do
    local body, before = of(e, 'b'), of(e, 'p')
    if #e[2] == 4 and body and tonumber(before) then
      redis.call('XADD', stream, e[1], 'b', body, 'p', before)
    end
  end
  if #entries > 0 then redis.call('EXPIRE', stream, math.ceil(tonumber(m[2]) or 86400)) end
end
return aside
"""
)
"""Rename keys of a channel that contain foreign data, with an `x` at the end.

Returns how many keys. The messages of a stream are kept.
"""

PURGE: Final = make_script(
    "local count = redis.pcall('XLEN', KEYS[1]) redis.call('DEL', KEYS[1]) "
    "return type(count) == 'number' and count or 0",
    " flags=allow-oom",
)
"""Delete a channel's stream; returns how many entries it had. Offsets, in the hash, continue."""

PUBLISH_SHARDED: Final = make_script(
    _SEND + "send(ARGV[1], ARGV[2], '1', ARGV[3]) return 1", " flags=allow-oom"
)
"""Send one message on a cluster: to its shard, and to filters if there are any.

It has no key: while a slot is moved, a key that is not there would send it to the slot's next node,
and the listeners are still at the present one.
"""

PROBE: Final = make_script("return 1")
"""Writes nothing; a server that accepts no writes refuses it, as it refuses STORE."""

SCRIPTS: Final = (STORE, READ, FOUND, RENEW, REPAIR, PURGE, PUBLISH_SHARDED)
