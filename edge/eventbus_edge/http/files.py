"""The edge's own files: read once, and served with conditional and range requests (RFC 9110).

The files are few and small, so they stay in memory. An entity tag is a hash of the content. So all
workers and nodes of one version give the same tag, and a proxy may revalidate at any of them.
"""

import hashlib
import mimetypes
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import (
    Final,
    NamedTuple,
)

from aiohttp import web

from eventbus_edge.problem import Problem

__all__ = ["File", "answer_file", "read_files"]

_RANGE: Final = re.compile(
    r"bytes=[ \t]*([0-9]{0,100})-([0-9]{0,100})[ \t]*", re.ASCII | re.IGNORECASE
)
_TYPES: Final = {".js": "text/javascript", ".ts": "text/plain", ".md": "text/markdown"}
"""Types that `mimetypes` does not know, or takes from the machine's registry."""


class File(NamedTuple):
    """The content of a file, and its validators."""

    content: bytes
    content_type: str
    etag: str
    """A strong entity tag, with its quotes."""
    modified: datetime


def read_files(folder: Path) -> dict[str, File]:
    """All files below a folder, by their paths with `/`."""
    return {
        path.relative_to(folder).as_posix(): _read(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _read(path: Path) -> File:
    content = path.read_bytes()
    kind = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "text/plain"
    modified = datetime.fromtimestamp(int(path.stat().st_mtime), UTC)
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return File(content, kind, etag, modified)


def answer_file(request: web.Request, file: File, headers: Mapping[str, str]) -> web.Response:
    """The response to GET or HEAD. Raises Problem: 412, or 416."""
    validators = {
        "ETag": file.etag,
        "Last-Modified": format_datetime(file.modified, usegmt=True),
        "Accept-Ranges": "bytes",
    }
    common = {**headers, **validators}
    if not _is_as_expected(request, file):
        raise Problem(
            "precondition_failed",
            "the file is not the version that the request expects",
            headers=common,
        )
    if _is_known(request, file):
        return web.Response(status=HTTPStatus.NOT_MODIFIED, headers=common)
    wanted = _wanted_range(request, file)
    if wanted is None:
        part, status = file.content, HTTPStatus.OK
    else:
        start, stop = wanted
        size = len(file.content)
        if start >= stop:
            raise Problem(
                "range_not_satisfiable",
                f"the range is beyond the end of the file, which has {size} bytes",
                headers={**common, "Content-Range": f"bytes */{size}"},
            )
        part, status = file.content[start:stop], HTTPStatus.PARTIAL_CONTENT
        common["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    charset = "utf-8" if file.content_type.startswith("text/") else None
    return web.Response(
        body=part, status=status, headers=common, content_type=file.content_type, charset=charset
    )


# Preconditions, in the order of RFC 9110 §13.2.2


def _is_as_expected(request: web.Request, file: File) -> bool:
    """If-Match, or else If-Unmodified-Since."""
    if (tags := _header(request, "If-Match")) is not None:
        return _has_tag(tags, file.etag, weak=False)
    since = _date(_header(request, "If-Unmodified-Since"))
    return since is None or file.modified <= since


def _is_known(request: web.Request, file: File) -> bool:
    """If-None-Match, or else If-Modified-Since."""
    if (tags := _header(request, "If-None-Match")) is not None:
        return _has_tag(tags, file.etag, weak=True)
    since = _date(_header(request, "If-Modified-Since"))
    return since is not None and file.modified <= since


def _wanted_range(request: web.Request, file: File) -> tuple[int, int] | None:
    """The one range of bytes that a GET asks for, as a slice; None for the whole file.

    A range of another unit, several ranges, and a range that is invalid are ignored (§14.2), as is
    one for another version of the file (If-Range, §13.1.5). The slice is empty for a range that
    cannot be satisfied.
    """
    if request.method != "GET":
        return None
    match = _RANGE.fullmatch(_header(request, "Range") or "")
    if match is None or not _is_range_for(_header(request, "If-Range"), file):
        return None
    first, last = match.groups()
    size = len(file.content)
    if first and last and int(last) < int(first):
        return None
    if first:
        return int(first), min(int(last) + 1, size) if last else size
    return (max(size - int(last), 0), size) if last else None


def _is_range_for(condition: str | None, file: File) -> bool:
    """Whether If-Range names this version: by a strong tag, or by exactly its date."""
    return condition is None or condition == file.etag or _date(condition) == file.modified


def _header(request: web.Request, name: str) -> str | None:
    """The values of a header as one list (§5.3); None without it."""
    values = request.headers.getall(name, None)
    return None if values is None else ", ".join(values).strip(" \t")


_TAG: Final = re.compile(r'(W/)?("[\x21\x23-\x7e\x80-\U0010ffff]*")')


def _has_tag(tags: str, etag: str, *, weak: bool) -> bool:
    """Whether a list of entity tags has `etag`; a weak one counts only if `weak`."""
    if tags == "*":
        return True
    return any(tag == etag and (weak or not prefix) for prefix, tag in _TAG.findall(tags))


def _date(text: str | None) -> datetime | None:
    """An HTTP date; None for anything else, which is ignored (§13.1.3)."""
    if not text:
        return None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)
