"""The folder of local data, which git ignores."""

import contextlib
from pathlib import Path
from typing import Final

__all__ = ["LOCAL", "make_local_folder"]

LOCAL: Final = ".eventbus"
"""The folder for data of this machine: the embedded server's, and the development secret."""
_IGNORE_ALL: Final = "# Data of this machine. Made by eventbus.\n*\n"


def make_local_folder(folder: Path) -> None:
    """Create a folder and its parents. Raises OSError.

    A folder `.eventbus` on the way gets a `.gitignore`, since it holds secrets and large files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for each in (folder, *folder.parents):
        if each.name == LOCAL:
            with (
                contextlib.suppress(FileExistsError),
                (each / ".gitignore").open("x", encoding="utf-8") as file,
            ):
                file.write(_IGNORE_ALL)
            return
