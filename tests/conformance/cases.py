"""The cases of the Autobahn test suite as data: number, what is sent, and the expected answers.

Autobahn's own server echoes each message. A node answers commands instead: a text is a command
whose answer quotes it (`Dialect.quoting`). Other texts and binary messages are answered with an
error, and the connection stays open. Everything that a case is about is Autobahn's: sizes,
fragments, pieces, bits, opcodes, UTF-8 and codes. If Autobahn's messages are larger than a node
accepts, a case has two rows: one at the limit, which is served, and one of Autobahn's size, which
is refused with 1009.

The numbers are those of https://github.com/crossbario/autobahn-testsuite.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Final

from tests.conformance.edges import LIMIT
from tests.conformance.wire import (
    BINARY,
    CLOSE,
    ERROR,
    MORE,
    PING,
    PONG,
    TEXT,
    Dialect,
    Pong,
    close,
    fragments,
    frame,
)

SECTIONS: Final = {
    1: "Framing",
    2: "Pings and pongs",
    3: "Reserved bits",
    4: "Opcodes",
    5: "Fragmentation",
    6: "UTF-8",
    7: "Close",
    9: "Limits",
    10: "Automatic fragmentation",
    12: "Compression: payloads",
    13: "Compression: parameters",
}
PROTOCOL_ERROR, INVALID_TEXT, TOO_LARGE = 1002, 1007, 1009


@dataclasses.dataclass
class Case:
    """One row; `answers` are texts, pongs and errors, then the close code."""

    number: str
    sent: Sequence[bytes]
    """What is sent, each part in a separate write; a Pong is awaited before the next part."""
    answers: Sequence[object]
    chop: int = 0
    """Bytes per write; 0: whole parts."""
    about: str = ""
    only: bool | None = None
    """Whether the case needs compression; None: it runs with and without."""

    @property
    def section(self) -> int:
        return int(self.number.split(".")[0])


def octets(text: str) -> bytes:
    return bytes.fromhex(text)


class Table:
    """Makes the cases for one protocol."""

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect
        self.cases: list[Case] = []

    def serves(self, number: str, *sent: bytes, answers: Sequence[object], **more: object) -> None:
        """A case that leaves the connection open: the client closes it."""
        self.cases.append(
            Case(number, [*sent, close(1000)], [*answers, 1000], **more)  # type: ignore[arg-type]
        )

    def fails(
        self,
        number: str,
        *sent: bytes,
        code: int = PROTOCOL_ERROR,
        answers: Sequence[object] = (),
        **more: object,
    ) -> None:
        """A case in which the node fails the connection, after some answers."""
        self.cases.append(Case(number, sent, [*answers, code], **more))  # type: ignore[arg-type]

    def closes(self, number: str, *sent: bytes, answer: int | None) -> None:
        """A case in which the client sends a close frame, which is answered."""
        self.cases.append(Case(number, sent, [answer]))

    def command(self, text: str | bytes) -> tuple[bytes, str]:
        """A command, and the text that its answer quotes."""
        text = text.encode() if isinstance(text, str) else text
        return self.dialect.quoting(text), text.decode()

    def sized(self, size: int, fill: bytes = b"*") -> tuple[bytes, str]:
        """A command of `size` bytes, and the text that its answer quotes."""
        command = self.dialect.sized(size, fill)
        return command, self.dialect.text_of(command)


def make(dialect: Dialect) -> list[Case]:
    """All cases of sections 1 to 10; those of 12 and 13 are in test_compression.py."""
    table = Table(dialect)
    for section in (_framing, _pings, _bits, _opcodes, _fragmentation, _utf8, _fail_fast):
        section(table)
    for section in (_close, _codes, _limits, _round_trips, _automatic):
        section(table)
    return table.cases


# 1 Framing

SIZES: Final = (0, 125, 126, 127, 128, 65_535, 65_536)


def _framing(table: Table) -> None:
    for number, size in enumerate(SIZES, 1):
        text, quoted = table.sized(size) if size else (b"", ERROR)
        table.serves(f"1.1.{number}", frame(TEXT, text), answers=[quoted])
        table.serves(f"1.2.{number}", frame(BINARY, b"\xfe" * size), answers=[ERROR])
    text, quoted = table.sized(65_536)
    table.serves("1.1.8", frame(TEXT, text), answers=[quoted], chop=997)
    table.serves("1.2.8", frame(BINARY, b"\xfe" * 65_536), answers=[ERROR], chop=997)


# 2 Pings and pongs


def _pings(table: Table) -> None:
    for number, payload in enumerate((b"", b"Hello, world!", octets("00fffefdfcfb00ff")), 1):
        table.serves(f"2.{number}", frame(PING, payload), answers=[Pong(payload)])
    longest = b"\xfe" * 125
    table.serves("2.4", frame(PING, longest), answers=[Pong(longest)])
    table.fails("2.5", frame(PING, longest + b"\xfe"))
    table.serves("2.6", frame(PING, longest), answers=[Pong(longest)], chop=1)
    table.serves("2.7", frame(PONG), answers=[])
    table.serves("2.8", frame(PONG, b"unsolicited pong payload"), answers=[])
    table.serves(
        "2.9",
        frame(PONG, b"unsolicited pong payload"),
        frame(PING, b"ping payload"),
        answers=[Pong(b"ping payload")],
    )
    payloads = [b"payload-%d" % number for number in range(10)]
    pings = [frame(PING, payload) for payload in payloads]
    # Of pings that arrive together, only the last is answered (RFC 6455, 5.5.3).
    table.serves("2.10", b"".join(pings), answers=[Pong(payloads[-1])], about="in one packet")
    one_by_one = [part for each in zip(pings, map(Pong, payloads), strict=True) for part in each]
    table.serves("2.10", *one_by_one, answers=[*map(Pong, payloads)], about="one by one")
    table.serves("2.11", *one_by_one, answers=[*map(Pong, payloads)], chop=1)


# 3 Reserved bits


def _bits(table: Table) -> None:
    text, quoted = table.command("Hello, world!")
    say = frame(TEXT, text)
    table.fails("3.1", frame(TEXT, text, rsv=1))
    table.fails("3.2", say, frame(TEXT, text, rsv=2), frame(PING), answers=[quoted])
    for chop in (0, 1):
        table.fails("3.3", say, frame(TEXT, text, rsv=3), frame(PING), answers=[quoted], chop=chop)
    table.fails(
        "3.4", say, frame(TEXT, text, rsv=4), frame(PING), answers=[quoted], chop=1, only=False
    )
    # With compression, the bit says that the message is deflated, which it is not.
    table.fails("3.4", say, frame(TEXT, b"\xff" * 9, rsv=4), answers=[quoted], chop=1, only=True)
    table.fails("3.5", frame(BINARY, octets("00fffefdfcfb00ff"), rsv=5))
    table.fails("3.6", frame(PING, b"Hello, world!", rsv=6))
    table.fails("3.7", frame(CLOSE, rsv=7))
    for opcode in (PING, PONG, CLOSE):  # RFC 7692, 6: only messages are compressed
        table.fails("3.4", frame(opcode, rsv=4), about=f"opcode {opcode}")


# 4 Opcodes


def _opcodes(table: Table) -> None:
    text, quoted = table.command("Hello, world!")
    for section, first in ((1, 3), (2, 11)):
        for number, opcode in enumerate(range(first, first + 5), 1):
            payload = b"" if number in (1, 3, 5) else b"reserved opcode payload"
            if number < 3:
                table.fails(f"4.{section}.{number}", frame(opcode, payload))
            else:
                table.fails(
                    f"4.{section}.{number}",
                    frame(TEXT, text), frame(opcode, payload), frame(PING),
                    answers=[quoted],
                )  # fmt: skip


# 5 Fragmentation


def _fragmentation(table: Table) -> None:
    text, quoted = table.command("fragment1fragment2fragment3fragment4fragment5")
    first, second = text[:30], text[30:]
    begin, end = frame(TEXT, first, fin=False), frame(MORE, second)
    table.fails("5.1", frame(PING, b"fragment1", fin=False), frame(MORE, b"fragment2"))
    table.fails("5.2", frame(PONG, b"fragment1", fin=False), frame(MORE, b"fragment2"))
    table.serves("5.3", begin + end, answers=[quoted])
    table.serves("5.4", begin, end, answers=[quoted])
    table.serves("5.5", begin, end, answers=[quoted], chop=1)
    ping, pong = frame(PING, b"ping payload"), Pong(b"ping payload")
    table.serves("5.6", begin + ping + end, answers=[pong, quoted])
    table.serves("5.7", begin, ping, end, answers=[pong, quoted])
    table.serves("5.8", begin, ping, end, answers=[pong, quoted], chop=1)
    for number, fin in ((9, True), (12, False)):
        stray, say = frame(MORE, b"non-continuation payload", fin=fin), frame(TEXT, text)
        table.fails(f"5.{number}", stray + say)
        table.fails(f"5.{number + 1}", stray, say)
        table.fails(f"5.{number + 2}", stray, say, chop=1)
    stray = frame(MORE, b"fragment3", fin=False)
    table.fails("5.15", begin + end + stray + frame(TEXT, b"fragment4"), answers=[quoted])
    for number, fin in ((16, False), (17, True)):
        table.fails(f"5.{number}", *(frame(MORE, b"fragment1", fin=fin), begin, end) * 2)
    table.fails("5.18", begin + frame(TEXT, b"fragment2"))
    pings = [(frame(PING, each), Pong(each)) for each in (b"pongme 1!", b"pongme 2!")]
    parts = fragments(text, len(text) // 5 + 1)
    before, after = b"".join(parts[:2]) + pings[0][0], parts[2] + parts[3] + pings[1][0] + parts[4]
    answers = [pings[0][1], pings[1][1], quoted]
    table.serves("5.19", before, pings[0][1], after, answers=answers)
    table.serves("5.20", *parts[:2], *pings[0], *parts[2:4], pings[1][0], parts[4], answers=answers)


# 6 UTF-8

GREETING: Final = "Hello-µ@ßöäüàá-UTF-8!!"
KOSME: Final = octets("ce ba e1 bd b9 cf 83 ce bc ce b5")
SURROGATE: Final = octets("ed a0 80") + b"edited"
BEYOND: Final = octets("f4 90 80 80")
_LONELY: Final = ((0xC0, 0xDF), (0xE0, 0xEF), (0xF0, 0xF7), (0xF8, 0xFB), (0xFC, 0xFD))
_CUT: Final = (
    "c0", "e0 80", "f0 80 80", "f8 80 80 80", "fc 80 80 80 80", "df", "ef bf", "f7 bf bf",
    "fb bf bf bf", "fd bf bf bf bf",
)  # fmt: skip
_SURROGATES: Final = ("ed a0 80", "ed ad bf", "ed ae 80", "ed af bf")


def _non_characters() -> Iterator[bytes]:
    yield from (octets("ef bf be"), octets("ef bf bf"))
    for plane in range(1, 17):
        for last in (0xFFFE, 0xFFFF):
            yield chr(plane << 16 | last).encode()


SEQUENCES: Final[dict[int, list[bytes]]] = {
    5: [
        b"hello\x24world", octets("68656c6c6f c2a2 776f726c64"),
        octets("68656c6c6f e282ac 776f726c64"), octets("68656c6c6f f0a4ada2 776f726c64"), KOSME,
    ],
    6: [KOSME[:end] for end in range(1, len(KOSME) + 1)],
    7: [b"\0", octets("c2 80"), octets("e0 a0 80"), octets("f0 90 80 80")],
    8: [octets("f8 88 80 80 80"), octets("fc 84 80 80 80 80")],
    9: [b"\x7f", octets("df bf"), octets("ef bf bf"), octets("f4 8f bf bf")],
    10: [octets("f7 bf bf bf"), octets("fb bf bf bf bf"), octets("fd bf bf bf bf bf")],
    11: [
        octets("ed 9f bf"), octets("ee 80 80"), octets("ef bf bd"), octets("f4 8f bf bf"), BEYOND,
    ],
    12: [
        b"\x80", b"\xbf", *(octets("80 bf 80 bf 80 bf")[:size] for size in range(2, 7)),
        bytes(range(0x80, 0xBF)),
    ],
    13: [
        b"".join(bytes((first, 0x20)) for first in range(begin, end)) for begin, end in _LONELY
    ],
    14: [octets(each) for each in _CUT],
    15: [octets("".join(_CUT))],
    16: [b"\xfe", b"\xff", octets("fe fe ff ff")],
    17: [
        octets("c0 af"), octets("e0 80 af"), octets("f0 80 80 af"), octets("f8 80 80 80 af"),
        octets("fc 80 80 80 80 af"),
    ],
    18: [
        octets("c1 bf"), octets("e0 9f bf"), octets("f0 8f bf bf"), octets("f8 87 bf bf bf"),
        octets("fc 83 bf bf bf bf"),
    ],
    19: [
        octets("c0 80"), octets("e0 80 80"), octets("f0 80 80 80"), octets("f8 80 80 80 80"),
        octets("fc 80 80 80 80 80"),
    ],
    20: [octets(each) for each in (*_SURROGATES, "ed b0 80", "ed be 80", "ed bf bf")],
    21: [octets(high + low) for high in _SURROGATES for low in ("ed b0 80", "ed bf bf")],
    22: [*_non_characters()],
    23: [chr(point).encode() for point in range(0xFFF9, 0x10000)],
}  # fmt: skip
"""Autobahn's, from Markus Kuhn's stress test of UTF-8 decoders."""


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


def _utf8(table: Table) -> None:
    table.serves("6.1.1", frame(TEXT), answers=[ERROR])
    empty = frame(TEXT, fin=False), frame(MORE, fin=False), frame(MORE)
    table.serves("6.1.2", *empty, answers=[ERROR])
    text, quoted = table.command("middle frame payload")
    table.serves(
        "6.1.3", frame(TEXT, fin=False), frame(MORE, text, fin=False), frame(MORE),
        answers=[quoted],
    )  # fmt: skip
    text, quoted = table.command(GREETING)
    table.serves("6.2.1", frame(TEXT, text), answers=[quoted])
    at = text.index("üàá".encode())
    table.serves(
        "6.2.2", frame(TEXT, text[:at], fin=False), frame(MORE, text[at:]), answers=[quoted]
    )
    table.serves("6.2.3", *fragments(text, 1), answers=[quoted])
    text, quoted = table.command(KOSME)
    table.serves("6.2.4", *fragments(text, 1), answers=[quoted])
    table.fails("6.3.1", frame(TEXT, KOSME + SURROGATE), code=INVALID_TEXT)
    table.fails("6.3.2", *fragments(KOSME + SURROGATE, 1), code=INVALID_TEXT)
    for section, sequences in SEQUENCES.items():
        for number, sequence in enumerate(sequences, 1):
            if not _is_utf8(sequence):
                text = table.dialect.quoting(sequence)
                for sent in (sequence, text):
                    table.fails(f"6.{section}.{number}", frame(TEXT, sent), code=INVALID_TEXT)
            else:
                text, quoted = table.command(sequence)
                if sequence == b"\0":  # valid UTF-8, which JSON does not allow (RFC 8259, 7)
                    quoted = ERROR
                table.serves(f"6.{section}.{number}", frame(TEXT, text), answers=[quoted])


def _fail_fast(table: Table) -> None:
    """Autobahn waits after each part; here a pong shows that the connection is still open."""
    alive = frame(PING, b"alive"), Pong(b"alive")
    whole = KOSME + BEYOND + b"edited"
    for number, cuts in ((1, (11, 15)), (2, (12, 13))):
        parts = whole[: cuts[0]], whole[cuts[0] : cuts[1]]
        table.fails(
            f"6.4.{number}",
            frame(TEXT, parts[0], fin=False), *alive, frame(MORE, parts[1], fin=False),
            code=INVALID_TEXT, answers=[alive[1]],
        )  # fmt: skip
        # The pieces of one frame are checked when all of it is there, as RFC 6455, 8.1 allows.
        sent = frame(TEXT, whole)
        head = len(sent) - len(whole)
        table.fails(
            f"6.4.{number + 2}",
            sent[: head + cuts[0]], sent[head + cuts[0] : head + cuts[1]], sent[head + cuts[1] :],
            code=INVALID_TEXT,
        )  # fmt: skip


# 7 Close

VALID_CODES: Final = (
    1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999,
)  # fmt: skip
INVALID_CODES: Final = (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999)


def _close(table: Table) -> None:
    text, quoted = table.command("Hello World!")
    say = frame(TEXT, text)
    table.serves("7.1.1", say, answers=[quoted])
    table.closes("7.1.2", close(1000) + close(), answer=1000)
    table.closes("7.1.3", close(1000) + frame(PING), answer=1000)
    table.closes("7.1.4", close(1000) + say, answer=1000)
    begin, end = frame(TEXT, text[:20], fin=False), frame(MORE, text[20:])
    table.closes("7.1.5", begin + close(1000) + end, answer=1000)
    large, quoted_large = table.sized(LIMIT, b"BAsd7&jh23")
    table.serves("7.1.6", frame(TEXT, large) + say, answers=[quoted_large, quoted])
    table.fails(
        "7.1.6", frame(TEXT, b"x" * 2**18) + say + close(1000) + frame(PING), code=TOO_LARGE
    )
    table.closes("7.3.1", close(), answer=None)
    table.fails("7.3.2", frame(CLOSE, b"a"))
    table.closes("7.3.3", close(1000), answer=1000)
    table.closes("7.3.4", close(1000, b"Hello World!"), answer=1000)
    table.closes("7.3.5", close(1000, b"*" * 123), answer=1000)
    table.fails("7.3.6", close(1000, b"*" * 124))
    table.fails("7.5.1", close(1000, KOSME + SURROGATE), code=INVALID_TEXT)


def _codes(table: Table) -> None:
    for number, code in enumerate(VALID_CODES, 1):
        table.closes(f"7.7.{number}", close(code), answer=code)
    for number, code in enumerate(INVALID_CODES, 1):
        table.fails(f"7.9.{number}", close(code))
    table.fails("7.13.1", close(5000))
    table.fails("7.13.2", close(65_535))


# 9 Limits

_KIB: Final = 1024
LARGE: Final = (64 * _KIB, 256 * _KIB, 1024 * _KIB, 4096 * _KIB, 8192 * _KIB, 16_384 * _KIB)
PARTS: Final = (64, 256, _KIB, 4 * _KIB, 16 * _KIB, 64 * _KIB, 256 * _KIB, 1024 * _KIB, 4096 * _KIB)
CHOPS: Final = (64, 128, 256, 512, 1024, 2048)


def _limits(table: Table) -> None:
    text, quoted = table.sized(LIMIT, b"BAsd7&jh23")
    binary = b"\x00\xfe\x23\xfa\xf0" * (LIMIT // 5)
    for number, size in enumerate(LARGE, 1):
        if size <= LIMIT:
            made, its_text = table.sized(size, b"BAsd7&jh23")
            table.serves(f"9.1.{number}", frame(TEXT, made), answers=[its_text])
            table.serves(f"9.2.{number}", frame(BINARY, binary[:size]), answers=[ERROR])
        else:
            table.fails(f"9.1.{number}", frame(TEXT, b"*" * size), code=TOO_LARGE)
            table.fails(f"9.2.{number}", frame(BINARY, b"\xfe" * size), code=TOO_LARGE)
    for number, size in enumerate(PARTS, 1):
        if size <= LIMIT:
            at_limit = {"about": "of the largest message"}
            sent = b"".join(fragments(text, size))
            table.serves(f"9.3.{number}", sent, answers=[quoted], **at_limit)
            sent = b"".join(fragments(binary, size, opcode=BINARY))
            table.serves(f"9.4.{number}", sent, answers=[ERROR], **at_limit)
        for part, opcode in ((3, TEXT), (4, BINARY)):  # a part of Autobahn's 4 MiB shows it
            sent = b"".join(fragments(b"*" * max(LIMIT + 1, size), size, opcode=opcode))
            table.fails(f"9.{part}.{number}", sent, code=TOO_LARGE, about="of a larger message")
    for number, chop in enumerate(CHOPS, 1):
        table.serves(f"9.5.{number}", frame(TEXT, text), answers=[quoted], chop=chop)
        table.serves(f"9.6.{number}", frame(BINARY, binary), answers=[ERROR], chop=chop)


TRIPS: Final = 25
"""Round trips; Autobahn makes 1,000."""


def _round_trips(table: Table) -> None:
    for number, size in enumerate((0, 16, 64, 256, 1024, 4096), 1):
        text = table.dialect.sized(size) if size > len(table.dialect.quoting(b"")) else b"*" * size
        quoted = table.dialect.text_of(text) if text.startswith(b"{") else ERROR
        here = frame(PING, b"here"), Pong(b"here")
        for part, sent, answer in ((7, frame(TEXT, text), quoted), (8, frame(BINARY, text), ERROR)):
            table.serves(
                f"9.{part}.{number}", *(sent, *here) * TRIPS, answers=[answer, here[1]] * TRIPS
            )


# 10 Automatic fragmentation


def _automatic(table: Table) -> None:
    text, quoted = table.sized(65_536)
    table.serves("10.1.1", *fragments(text, 1300), answers=[quoted])


# Beyond Autobahn: sections of the RFCs


def beyond(dialect: Dialect) -> list[Case]:
    """Requirements of the RFCs for which Autobahn has no case; the numbers are sections."""
    table = Table(dialect)
    text, quoted = table.command("Hello, world!")
    say = frame(TEXT, text)
    for opcode, payload in ((TEXT, text), (TEXT, b""), (BINARY, b"x"), (PING, b""), (PONG, b""),
                            (CLOSE, b"\x03\xe8")):  # fmt: skip
        table.fails("6455-5.1", frame(opcode, payload, mask=False), about=f"opcode {opcode}")
    table.fails("6455-5.1", say + frame(TEXT, text, mask=False), answers=[quoted])
    table.fails("6455-5.1", frame(TEXT, b"{", fin=False) + frame(MORE, b"}", mask=False))
    table.fails("6455-5.2", b"\x81\xfe\0\x7d" + bytes(4 + 125), about="125 bytes in 2")
    table.fails("6455-5.2", b"\x81\xff" + (10).to_bytes(8) + bytes(14), about="10 bytes in 8")
    table.fails("6455-5.2", b"\x82\xff\x80" + bytes(7 + 4), about="a size of 2^63")
    table.fails("6455-5.2", b"\x82\xff" + (2**62).to_bytes(8), code=TOO_LARGE)
    table.serves("6455-5.4", *fragments(text, 1), answers=[quoted])
    parts = [frame(TEXT, fin=False), *[frame(MORE, fin=False)] * 50, frame(MORE, text)]
    table.serves("6455-5.4", *parts, answers=[quoted], about="fragments without data")
    table.fails("6455-5.4", frame(TEXT, fin=False) + say, about="an empty first fragment")
    table.fails("6455-5.4", frame(TEXT, fin=False) + frame(BINARY, fin=False))
    table.fails("6455-5.5.1", frame(CLOSE, b"\x03\xe8", fin=False))
    for code in (1012, 1013, 1014):
        table.closes("6455-7.4", close(code), answer=code)
    table.fails("6455-7.4", close(1015))
    table.serves("6455-5.5.3", say + frame(PING, b"y"), answers=[quoted, Pong(b"y")])
    table.serves("6455-9.1", *[say] * 300, answers=[quoted] * 300, about="many texts")
    return table.cases
