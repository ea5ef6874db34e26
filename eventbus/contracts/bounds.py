"""Compares the limits, patterns and formats of two schemas."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from eventbus.contracts.views import BOTH, READERS, WRITERS, Difference, Views
from eventbus.contracts.words import json_text

__all__ = ["bounds"]

_LOWER: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_UPPER: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")
_EQUAL: Final = ("pattern", "multipleOf", "format", "uniqueItems")


def bounds(old: Any, new: Any, place: str) -> Iterator[Difference]:
    """Yield the differences in limits, patterns and formats of two schemas of the same type."""
    for keywords, sign in ((_LOWER, 1), (_UPPER, -1)):
        yield from _limit(old, new, place, keywords[:2], sign)
        for keyword in keywords[2:]:
            before, after = old.get(keyword), new.get(keyword)
            if before == after or (keyword.endswith("Items") and "prefixItems" in new):
                continue
            is_tighter = before is None or (after is not None and (after - before) * sign > 0)
            yield _bound(keyword, before, after, place, WRITERS if is_tighter else READERS)
    for keyword in _EQUAL:
        before, after = old.get(keyword), new.get(keyword)
        if before != after:
            breaks = WRITERS if before is None else READERS if after is None else BOTH
            if keyword == "multipleOf" and before is not None and after is not None:
                breaks = (
                    WRITERS if after % before == 0 else READERS if before % after == 0 else BOTH
                )
            yield _bound(keyword, before, after, place, breaks)
    is_open = new.get("items") is not False  # an array-like struct's required fields
    if "prefixItems" in new and is_open and old.get("minItems", 0) != new.get("minItems", 0):
        breaks = WRITERS if new.get("minItems", 0) > old.get("minItems", 0) else READERS
        yield _bound("minItems", old.get("minItems"), new.get("minItems"), place, breaks)


def _limit(old: Any, new: Any, place: str, words: Sequence[str], sign: int) -> Iterator[Difference]:
    """Compare a numeric bound, inclusive (`words[0]`) or exclusive (`words[1]`)."""
    at, beyond = words
    before, after = (_reach(schema, at, beyond, sign) for schema in (old, new))
    if before == after:
        return
    is_tighter = before is None or (after is not None and after > before)
    is_same = at not in old and at not in new
    keyword = beyond if is_same else at
    shown = [schema.get(keyword, schema.get(beyond)) for schema in (old, new)]
    if not is_same and (beyond in old or beyond in new):
        keyword = f"{at} or {beyond}"
    breaks = WRITERS if is_tighter else READERS
    yield _bound(keyword, shown[0], shown[1], place, breaks)


def _reach(schema: Any, at: str, beyond: str, sign: int) -> tuple[float, bool] | None:
    """The tightness of a bound: greater is tighter. For integers, exclusive becomes inclusive."""
    found = [(schema[at] * sign, False)] if at in schema else []
    if beyond in schema:
        is_whole = schema.get("type") == "integer"
        found.append((schema[beyond] * sign + is_whole, not is_whole))
    return max(found, default=None)


def _bound(keyword: str, before: Any, after: Any, place: str, breaks: Views) -> Difference:
    what = "tightened" if breaks == WRITERS else "loosened" if breaks == READERS else "changed"
    shown = ["none" if value is None else json_text(value) for value in (before, after)]
    return Difference(place, f"{keyword} {what} from {shown[0]} to {shown[1]}", breaks)
