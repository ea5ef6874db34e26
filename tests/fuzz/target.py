"""The targets of fuzzing: functions that decode foreign bytes, and the errors they may raise."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

__all__ = [
    "CORPUS",
    "MOST_FILES",
    "MOST_KEPT_BYTES",
    "TARGETS",
    "Target",
    "kept",
    "name_of",
    "target",
]

CORPUS: Final = Path(__file__).parent / "corpus"
"""One folder per target, with the inputs that reach different code."""


MOST_FILES: Final = 30
"""The most files in a corpus, since tests and people read it."""
MOST_KEPT_BYTES: Final = 2048


class Target(NamedTuple):
    """One decoder. It may return, or raise one of `allowed`; anything else is a fault."""

    name: str
    decode: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...]
    modules: tuple[str, ...]
    """The modules whose decoding this target covers."""
    seeds: tuple[bytes, ...]
    """Valid inputs, which fuzzers mutate."""

    def run(self, data: bytes) -> None:
        """Decode once. Raises only errors that are not allowed."""
        with contextlib.suppress(self.allowed):
            self.decode(data)


TARGETS: Final[dict[str, Target]] = {}
"""All targets by name."""


def target(
    *modules: str, seeds: Sequence[bytes | str], allowed: tuple[type[Exception], ...] = ()
) -> Callable[[Callable[[bytes], object]], Callable[[bytes], object]]:
    """Register a function as the target of its name."""

    def register(decode: Callable[[bytes], object]) -> Callable[[bytes], object]:
        name = decode.__name__
        assert name not in TARGETS, f"there are two targets named {name}"
        data = tuple(seed.encode() if isinstance(seed, str) else seed for seed in seeds)
        TARGETS[name] = Target(name, decode, allowed, modules, data)
        return decode

    return register


def kept(each: Target) -> Iterator[bytes]:
    """The inputs of a target's corpus."""
    for path in sorted((CORPUS / each.name).glob("*")):
        yield path.read_bytes()


def name_of(data: bytes) -> str:
    """The name of an input's file in a corpus."""
    return hashlib.sha256(data).hexdigest()[:16]
