"""The keys under which nodes keep their state."""

from eventbus.channels import Pattern
from eventbus.errors import InvalidPattern

__all__ = ["validate_key"]


def validate_key(key: str) -> str:
    """Give `key` back when entries may have it. Raises InvalidPattern."""
    if not Pattern(key).is_exact:
        raise InvalidPattern(f"{key[:80]!r} is not a key: it matches more than one", name=key[:80])
    return key
